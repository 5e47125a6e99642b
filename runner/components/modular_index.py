"""What a modular_model_index.json says: the class of pipeline, its settings, where each component is.

Blocks come from diffusers only: those that a directory brings as Python files are refused. An index also names a
repository for each component; nothing is fetched from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import transformers

from runner.components.modular import TRIED, class_of, experimental, is_block
from runner.components.reading import reading
from runner.errors import UserError
from weights.files import read_object

INDEX = "modular_model_index.json"
_PROCESSORS = ("AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor")
_CODE = "modular_config.json"  # where a directory names blocks of its own


@dataclass(frozen=True)
class Spec:
    """What an index says of a component: the library and name of its class, the subfolder that its files are in, the
    repository (or the path, elsewhere) that they came from, and which variant of the weights is meant."""

    library: str
    class_name: str
    subfolder: str
    origin: str
    variant: str | None = None

    @property
    def entry(self) -> tuple[str, str]:
        return self.library, self.class_name


def modular_class(index_file: Path, index: Mapping[str, Any], workflow: str | None = None) -> Any:
    """The class for the pipeline that the index names, with all its blocks or those of a workflow. Raises UserError."""
    if (index_file.parent / _CODE).exists():
        raise UserError(
            f"{index_file.parent / _CODE} brings blocks of the directory's own, and code of a model is never run"
        )
    name, blocks_name = index.get("_class_name"), index.get("_blocks_class_name")
    with experimental(f"{index_file}: {name!r} cannot be imported"):
        cls = getattr(diffusers, name, None) if isinstance(name, str) else None
        if not (isinstance(cls, type) and issubclass(cls, diffusers.ModularPipeline)):
            raise UserError(
                f"{index_file}: {name!r} is no modular pipeline of diffusers {diffusers.__version__}, which is "
                f"installed ({' and '.join(TRIED)} was tried); the directory was written by "
                f"{index.get('_diffusers_version', 'an unknown version')}"
            )
        blocks: Any = getattr(diffusers, blocks_name, None) if isinstance(blocks_name, str) else None
        if not _are_blocks(blocks):  # as diffusers does, for a class that holds none itself
            blocks = getattr(diffusers, cls.default_blocks_name or "", None)
    if not _are_blocks(blocks):
        raise UserError(f"{index_file}: {blocks_name!r} are no blocks of diffusers, and code of a model is never run")
    with experimental(f"{index_file}: the blocks {blocks.__name__} cannot be put together"):
        whole = blocks()
        known = list(whole._workflow_map or ())
        if workflow is not None and workflow not in known:
            there = f"it has {', '.join(known)}" if known else "it has one task, without a name"
            raise UserError(f"model.workflow: a {cls.__name__} has no workflow {workflow!r}; {there}")
        return class_of(cls, whole, workflow)


def told_apart(index_file: Path, cls: Any, index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Spec]]:
    """The pipeline's settings, None for a component that is not there, and what the index says of the others.

    What has no entry, or one without an origin, is made by the constructor (guiders, processors), or left out.
    """
    settings: dict[str, Any] = {name: index[name] for name in cls.settings if name in index}
    listed: dict[str, Spec] = {}
    for name in cls.parts:
        entry = index.get(name)
        if entry is not None and not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], dict)):
            raise UserError(f"{index_file}: {name} is {entry!r:.80}; a component is [library, class, where it is]")
        entry = entry or [None, None, {}]
        said = entry[2]
        if origin := said.get("pretrained_model_name_or_path", said.get("repo")):
            listed[name] = _spec(index_file, name, entry, origin)
        elif name not in cls.made:
            settings[name] = None
    return settings, listed


def folder_of(index_file: Path, name: str, spec: Spec) -> Path:
    """A component's folder, inside the index's. Raises UserError where it is not there: nothing is fetched."""
    root = index_file.parent
    for inside in (spec.subfolder, name):
        if inside and (root / inside).is_dir():
            return root / inside
    raise UserError(
        f"{root} has no folder {spec.subfolder or name}; {index_file.name} says that {name} is that of "
        f"{spec.origin!r}, and nothing is fetched: copy it there, or give its folder as components.{name}.path"
    )


def chosen_by_library(folder: Path, spec: Spec) -> Any:
    """The class, where an index leaves it to a library; None where it names one. A model's is known before it is
    loaded, by the library's rule; a tokenizer's or processor's is only known to it."""
    if spec.library == "transformers" and spec.class_name in _PROCESSORS:
        return getattr(transformers, spec.class_name)
    if not spec.class_name.startswith("AutoModel"):
        return None
    name = read_object(folder / "config.json").get("_class_name") if spec.library == "diffusers" else None
    auto = "AutoModel" if spec.library == "diffusers" else spec.class_name
    with reading(f"{folder}: {spec.class_name} does not choose a class for it"):
        if name is not None:
            return getattr(diffusers, name)
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return getattr(transformers, auto)._model_mapping[type(config)]


def _spec(index_file: Path, name: str, entry: list[Any], origin: Any) -> Spec:
    """A class that chooses one when it loads stands in an index beside the one that it chose, if it was loaded."""
    said = entry[2]
    hint, subfolder = said.get("type_hint"), said.get("subfolder") or ""
    library, class_name = hint if isinstance(hint, list) and len(hint) == 2 else (None, None)
    if (library, class_name) == (None, None) and isinstance(hint, list):
        library, class_name = "diffusers", "AutoModel"
    if not all(isinstance(text, str) for text in (library, class_name, subfolder, origin)):
        raise UserError(f"{index_file}: {name} has {said!r:.120}; it needs a type_hint, [library, class]")
    if str(class_name).startswith("Auto") and all(isinstance(text, str) for text in entry[:2]):
        library, class_name = entry[:2]
    if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts:
        raise UserError(f"{index_file}: the subfolder of {name} is {subfolder!r}, outside of the directory")
    variant = said.get("variant") or None
    if not isinstance(variant, str | None):
        raise UserError(f"{index_file}: the variant of {name} is {variant!r:.80}; it is a text, or null")
    return Spec(str(library), str(class_name), subfolder, origin, variant)


def _are_blocks(cls: Any) -> bool:
    return is_block(cls) and bool(cls.block_classes)
