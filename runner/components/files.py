"""The files, beside the weights, from which a component is built: which they are, and whether they are there."""

from pathlib import Path

from diffusers import ConfigMixin
from transformers import PreTrainedModel

from weights.files import FileError, read_bytes, read_object, read_text, why_unreadable

# Tokenizers and processors look for many names, by rules that change with each release of transformers: the
# vocabulary files that the class names, configurations, templates, vocabularies of other kinds. So all files count
# that could be one by their suffix, here and in the folders directly below (templates, second tokenizers); a README, a
# licence or a picture could not.
_SUFFIXES = {".json", ".jinja", ".model", ".spm", ".tiktoken"}
_NAMES = {"merges.txt", "vocab.txt"}
_VOCABULARIES = {"tokenizer.json", "tekken.json", "tokenizer.model", "tiktoken.model"}  # for any tokenizer


def files_of(cls: type, folder: Path) -> list[Path]:
    """What `cls.from_pretrained(folder)` reads or may read, of what is there, weights aside; sorted.

    Raises FileError where the folder cannot be listed.
    """
    if (config := _config_of(cls)) is not None:
        names = {config, "generation_config.json"} if issubclass(cls, PreTrainedModel) else {config}
        return sorted(file for file in _listed(folder) if file.name in names)
    names = _NAMES | _vocabulary_of(cls)
    inside = [file for below in _listed(folder) if below.is_dir() for file in _listed(below)]
    found = [file for file in (*_listed(folder), *inside) if file.suffix in _SUFFIXES or file.name in names]
    return sorted(file for file in found if not file.is_dir())


def check_files(cls: type, folder: Path) -> None:
    """Raises FileError where a component's folder lacks what the component is made of, or holds broken configurations.

    A tokenizer without any vocabulary is no error to transformers: it makes an empty one.
    """
    if (config := _config_of(cls)) is not None:
        read_object(folder / config)
        adapter = folder / "adapter_config.json"
        if issubclass(cls, PreTrainedModel) and adapter in _listed(folder):
            raise FileError(
                f"{adapter}: transformers would put this adapter on the weights; move it, and name it in lora.adapters"
            )
    elif vocabulary := _vocabulary_of(cls):
        wanted = vocabulary | _VOCABULARIES
        if not any(file.name in wanted for file in _listed(folder)):
            names = " or ".join(sorted(wanted))
            raise FileError(f"{folder} holds no vocabulary for a {cls.__name__} ({names}); copy the folder again")
    for file in files_of(cls, folder):
        if file.name.endswith("config.json"):
            read_object(file)
        elif file.suffix in {".json", ".jinja", ".txt"}:
            read_text(file)
        else:
            read_bytes(file)


def _config_of(cls: type) -> str | None:
    """The one file that a class of models, schedulers or the like is built from."""
    if issubclass(cls, PreTrainedModel):
        return "config.json"
    return cls.config_name if issubclass(cls, ConfigMixin) else None


def _vocabulary_of(cls: type) -> set[str]:
    return {name for name in getattr(cls, "vocab_files_names", {}).values() if name}


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise FileError(why_unreadable(folder, error)) from error
