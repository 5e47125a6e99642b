"""Each rank makes one latent of each family. argv: the folder of the tiny pipelines, the folder for the latents."""

import sys
from pathlib import Path

import numpy as np

from runner.config import load_config
from runner.pipeline.open import open_pipeline
from runner.request import Request
from runner.world import joined_world
from tests import tiny

if __name__ == "__main__":
    root, output = Path(sys.argv[1]), Path(sys.argv[2])
    with joined_world() as world:
        for name, family in tiny.FAMILIES.items():
            pipeline = open_pipeline(load_config(None, [f"model.path={root / name}"]), world)
            prompt = family.prompts[world.rank]
            text = prompt[0] if isinstance(prompt, list) else prompt
            latent = pipeline(Request(text, world.rank, family.call, output_type="latent"))[0][0]
            np.save(output / f"{name}-{world.rank}.npy", np.asarray(latent))
