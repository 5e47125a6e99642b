"""Weight files of a variant (model.variant=fp16): which components have some, by the rule of `from_pretrained`."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from runner.components.source import Source
from runner.errors import UserError
from weights.files import FileError, why_unreadable


def of_variant(
    sources: Mapping[str, Source], elsewhere: Collection[str], variant: str | None, root: Path
) -> dict[str, Source]:
    """The components, each of the variant where its folder has files of it. Raises UserError where none has.

    Not those from `elsewhere`: they say for themselves.
    """
    if variant is None:
        return dict(sources)
    has = {
        name
        for name, source in sources.items()
        if name not in elsewhere and source.is_module and _has(source.folder, variant)
    }
    if not has:
        raise UserError(f"model.variant: no component of {root} has weight files of the variant {variant!r}")
    return {name: replace(source, variant=variant) if name in has else source for name, source in sources.items()}


def _has(folder: Path, variant: str) -> bool:
    """`model.fp16.safetensors`, and `model.fp16-00001-of-00002.safetensors`: what comes after the first dot."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise FileError(why_unreadable(folder, error)) from error
    return any("." in name and name.split(".")[1].startswith(variant) for name in names)
