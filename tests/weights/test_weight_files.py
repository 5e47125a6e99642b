"""Which files are the weights: in every layout, and in every placement, those that the component's library loads."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import CLIPTextConfig, CLIPTextModel

from runner.components.skeleton import checkpoint_of
from runner.components.source import Source, library_of
from runner.errors import UserError
from sharding import build_mesh
from tests import ranks
from tests.ranks import on_ranks
from tests.runner.components.placements import PLACEMENTS, place, state_of
from weights.checkpoint import Library, weight_files
from weights.files import FileError
from weights.stored_weights import StoredWeights
from weights.tied import tied_names

CLASSES: dict[Library, type] = {Library.diffusers: AutoencoderKL, Library.transformers: CLIPTextModel}


@dataclass(frozen=True)
class Folder:
    """A component's directory, to be filled with sets of weights that all differ: in set n, each value is n."""

    path: Path
    library: Library

    def _weights(self, value: int) -> dict[str, torch.Tensor]:
        keys = load_file(self.path / "all-keys")
        return {key: torch.full_like(tensor, value) for key, tensor in keys.items()}

    def single(self, value: int, *, name: str | None = None, variant: str = "") -> None:
        save_file(self._weights(value), self.path / f"{name or self.library.value}{variant}.safetensors")

    def index(self, value: int, *, name: str | None = None, variant: str = "", shards: bool = True) -> None:
        """An index of two files; without `shards`, a stale one."""
        base, weights = name or self.library.value, self._weights(value)
        names = [f"{base}{variant}-{i + 1:05}-of-00002.safetensors" for i in range(2)]
        parts = [list(weights)[i::2] for i in range(2)]
        for file, keys in zip(names, parts, strict=True):
            if shards:
                save_file({key: weights[key] for key in keys}, self.path / file)
        weight_map = {key: file for file, keys in zip(names, parts, strict=True) for key in keys}
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
        (self.path / f"{base}.safetensors.index{variant}.json").write_text(text)

    def other_name(self) -> str:
        return next(library.value for library in Library if library is not self.library)

    def configure(self, **settings: object) -> None:
        config = json.loads((self.path / "config.json").read_text())
        (self.path / "config.json").write_text(json.dumps(config | settings))


LAYOUTS: dict[str, Callable[[Folder], object]] = {
    "one file": lambda f: f.single(1),
    "an index": lambda f: f.index(1),
    "both": lambda f: (f.single(1), f.index(2)),
    "a file beside a stale index": lambda f: (f.single(1), f.index(2, shards=False)),
    "a stale index": lambda f: f.index(1, shards=False),
    "a dangling link beside an index": lambda f: (
        (f.path / f"{f.library.value}.safetensors").symlink_to("gone"),
        f.index(2),
    ),
    "a folder of the file's name beside an index": lambda f: (
        (f.path / f"{f.library.value}.safetensors").mkdir(),
        f.index(2),
    ),
    "a variant beside": lambda f: (f.single(1), f.single(2, variant=".fp16"), f.index(3, variant=".fp16")),
    "a variant only": lambda f: f.single(1, variant=".fp16"),
    "the other library's name beside": lambda f: (f.single(1), f.single(2, name=f.other_name())),
    "the other library's index beside": lambda f: (f.single(1), f.index(2, name=f.other_name())),
    "the other library's name only": lambda f: f.single(1, name=f.other_name()),
    "another safetensors file beside": lambda f: (f.single(1), f.single(2, name="ema")),
    "weights in a folder inside": lambda f: (
        f.single(1),
        (f.path / "old").mkdir(),
        f.single(2, name=f"old/{f.library.value}"),
    ),
    "a file that the config names": lambda f: (
        f.single(1),
        f.single(2, name="chosen"),
        f.configure(transformers_weights="chosen.safetensors"),
    ),
    "an index that the config names": lambda f: (
        f.single(1),
        f.index(2, name="chosen"),
        f.configure(transformers_weights="chosen.safetensors.index.json"),
    ),
    "nothing": lambda f: None,
}


def write(path: Path, library: Library, layout: str) -> None:
    """The component's folder in one layout. Its config comes from the library; its values are all alike."""
    model: nn.Module
    if library is Library.diffusers:
        sizes = {"block_out_channels": (4,), "layers_per_block": 1, "norm_num_groups": 1, "latent_channels": 2}
        model = AutoencoderKL(**sizes)
    else:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        model = CLIPTextModel(CLIPTextConfig(vocab_size=9, max_position_embeddings=5, **sizes))
    model.save_pretrained(path)  # type: ignore[operator]
    (path / f"{library.value}.safetensors").rename(path / "all-keys")
    LAYOUTS[layout](Folder(path, library))


def value_of(tensors: dict[str, torch.Tensor]) -> float:
    """The one value that all the weights have."""
    values = {tensor.flatten()[0].item() for tensor in tensors.values()}
    assert len(values) == 1
    return values.pop()


def stock(cls: type, path: Path) -> float | None:
    """What `from_pretrained` loads; None where it refuses."""
    try:
        module = cls.from_pretrained(path, use_safetensors=True, local_files_only=True)  # type: ignore[attr-defined]
    except OSError:
        return None
    return value_of(module.state_dict())


def placed(cls: type, path: Path, placement: str, mesh: DeviceMesh) -> float | None:
    """What the component computes with when it is placed; None where it is refused."""
    try:
        module, loading = place(cls, path, placement, mesh)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return None
    if placement in ("resident", "host"):
        assert loading.bytes_read == sum(file.stat().st_size for file in weight_files(path, library_of(cls)))
    state = state_of(module)
    with closing(StoredWeights(checkpoint_of(module, Source(path.name, cls, path)), tied_names(module))) as stored:
        name = next(name for name, tensor in state.items() if tensor.ndim > 1)
        again = stored.read(name, slice(0, 1), slice(0, 1))
    assert again.flatten()[0].item() == value_of(state), "what is read again later is what was loaded"
    return value_of(state)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("library", Library)
@on_ranks(1)
def test_every_placement_loads_the_files_that_the_library_loads(
    world: ranks.World, library: Library, layout: str
) -> None:
    cls, path = CLASSES[library], world.tmp_path / "component"
    write(path, library, layout)
    expected = stock(cls, path)
    mesh = build_mesh("cpu")
    assert {name: placed(cls, path, name, mesh) for name in PLACEMENTS} == dict.fromkeys(PLACEMENTS, expected)


@pytest.mark.parametrize("library", Library)
def test_a_variant_is_found_under_the_names_that_the_library_gives_it(tmp_path: Path, library: Library) -> None:
    write(tmp_path, library, "one file")
    folder = Folder(tmp_path, library)
    folder.single(2, variant=".fp16")
    folder.index(3, variant=".fp16")
    loaded = CLASSES[library].from_pretrained(tmp_path, variant="fp16", use_safetensors=True)  # type: ignore[attr-defined]
    found = [tensor for file in weight_files(tmp_path, library, "fp16") for tensor in load_file(file).values()]
    assert {tensor.flatten()[0].item() for tensor in found} == {value_of(loaded.state_dict())}


INDEXES = {
    "no weight_map": ({"metadata": {}}, "lacks the objects weight_map and metadata"),
    "no metadata": ({"weight_map": {"a": "diffusion_pytorch_model.safetensors"}}, "lacks the objects"),
    "a list for a map": ({"metadata": {}, "weight_map": ["a"]}, "lacks the objects"),
    "an empty map": ({"metadata": {}, "weight_map": {}}, "lacks the objects"),
    "a path": ({"metadata": {}, "weight_map": {"a": "../a.safetensors"}}, "'../a.safetensors', which is no file"),
    "a number": ({"metadata": {}, "weight_map": {"a": 7}}, "names 7, which is no file beside it"),
    "a list": ([], "holds a list, not an object"),
}


@pytest.mark.parametrize("index", INDEXES)
def test_an_index_that_is_none_is_refused(tmp_path: Path, index: str) -> None:
    content, message = INDEXES[index]
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(FileError, match=message):
        weight_files(tmp_path, Library.diffusers)
