"""Makes the embedded default model, models/emoji-dit, on a CPU.

Four stages, each of which starts from what the one before left in the cache:

  data      installs three emoji sets and a rasteriser with npm, and rasterises the icons
  vae       trains the autoencoder, on pictures composed on the fly
  denoiser  encodes 30,000 pictures once, then trains the text encoder and the diffusion transformer on them
  export    writes the diffusers directory, in bfloat16

Training runs for a number of minutes, not of steps: the learning rate follows the share of the minutes that is spent.
An interrupted stage continues where its last checkpoint left it; a finished one is skipped. Delete the cache to start
again.

  python scripts/train_default_model.py                        # everything, about 80 minutes on two cores
  python scripts/train_default_model.py denoiser export        # two stages
  python scripts/train_default_model.py --denoiser-minutes 180 # a better model; continues from the 60 minutes there are

Then measure it with scripts/evaluate_default_model.py.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from emoji.autoencoder import load_autoencoder, reconstruction_psnr, train_autoencoder
from emoji.denoiser import load_denoiser, train_denoiser
from emoji.export import export
from emoji.icons import load_icons
from emoji.latents import SCENES_PER_ICON, encode_scenes
from emoji.pictures import draw_icons, render
from emoji.schedule import is_finished

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("data", "vae", "denoiser", "export")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"of {', '.join(STAGES)}; all of them by default")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/emoji", help="icons and checkpoints (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "models/emoji-dit", help="the model (%(default)s)")
    parser.add_argument("--vae-minutes", type=float, default=17, help="training time of the vae stage (%(default)s)")
    parser.add_argument("--denoiser-minutes", type=float, default=60, help="of the denoiser stage (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (%(default)s)")
    arguments = parser.parse_args()
    arguments.stages = arguments.stages or list(STAGES)
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; the stages are {', '.join(STAGES)}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    cache: Path = arguments.cache
    vae_checkpoint, denoiser_checkpoint = cache / "autoencoder.pt", cache / "denoiser.pt"
    icons = load_icons(cache)
    print(f"data: {icons.shape[1]} concepts in {icons.shape[0]} styles")

    if "vae" in arguments.stages and not is_finished(vae_checkpoint, arguments.vae_minutes):
        train_autoencoder(icons, vae_checkpoint, minutes=arguments.vae_minutes)
    if not {"denoiser", "export"} & set(arguments.stages):
        return

    autoencoder = load_autoencoder(vae_checkpoint, icons)
    pictures = render(draw_icons(1, torch.Generator().manual_seed(1)), icons)
    print(f"vae: {reconstruction_psnr(autoencoder, pictures):.1f} dB on new pictures", flush=True)

    def export_average() -> None:
        export(arguments.output, copy.deepcopy(autoencoder), load_denoiser(denoiser_checkpoint))

    if "denoiser" in arguments.stages and not is_finished(denoiser_checkpoint, arguments.denoiser_minutes):
        latents = cache / "latents.pt"
        if not latents.exists():
            encode_scenes(autoencoder, icons, latents, num_each=SCENES_PER_ICON)
        train_denoiser(latents, denoiser_checkpoint, minutes=arguments.denoiser_minutes, on_save=export_average)
    if "export" in arguments.stages:
        export_average()
        print(f"export: {arguments.output}")


if __name__ == "__main__":
    main()
