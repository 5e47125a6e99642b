"""What decides the pixels of a whole job. A folder keeps one recipe, so that a rerun cannot mix two."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from runner.config import Audio, OnChange, RunConfig, VideoConfig
from runner.errors import UserError
from runner.inputs.input_file import identity as identity_of
from runner.output.folder import Folder
from runner.output.write import parse_object, write_whole


def recipe_of(config: RunConfig, identity: Mapping[str, Any], call: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Dotted key -> value. `identity` says what the weights are, `call` is job.call once its files are looked at.

    Left out is what does not decide a request's pixels (placement, mesh, world size, part), and what each request says
    for itself (its prompt and its own fields): a longer prompt list is the same recipe.
    """
    job = config.job
    arguments = {
        f"job.call.{name}": identity_of(value) for name, value in sorted((job.call if call is None else call).items())
    }
    own = {"job.seed": job.seed, "job.format": job.format.value, "job.fps": job.fps}
    # How files are coded decides no pixels; a folder of two codecs is a mistake all the same.
    coding = {"job.video.codec": job.video.codec, "job.video.crf": job.video.crf, "job.audio": job.audio.value}
    plain = {"job.video.codec": VideoConfig.codec, "job.video.crf": None, "job.audio": Audio.wav.value}
    own |= {key: value for key, value in coding.items() if value != plain[key]}
    recipe = {**{key_of(name): value for name, value in identity.items()}, **own, **arguments}
    return json.loads(json.dumps(recipe, default=str))


def key_of(name: str) -> str:
    """The setting that a line of a model's identity is about."""
    return name if name.startswith(("components.", "mesh.", "numerics.")) else f"model.{name}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old -> new` for each key that differs."""
    keys = [key for key in {**old, **new} if old.get(key, "unset") != new.get(key, "unset")]
    return [f"{key}: {_short(old.get(key, 'unset'))} -> {_short(new.get(key, 'unset'))}" for key in keys]


def choose_folder(folders: Iterator[Folder], recipe: Mapping[str, Any], on_change: OnChange) -> Folder:
    """The first of `folders` when it keeps this recipe or none; with `new_folder`, the first of all that does.

    A rerun with the changed recipe so finds the folder that the first such run began. Raises UserError when the first
    keeps another recipe and no new one was asked for.
    """
    first = next(folders)
    changed = differences(read_recipe(first) or recipe, recipe)
    if not changed:
        return first
    if on_change is OnChange.refuse:
        raise UserError(
            f"job.output: {first.path} was made by another recipe ({'; '.join(changed)}); go back to it, name another "
            "folder, or say job.on_change=new_folder"
        )
    return next(folder for folder in folders if not differences(read_recipe(folder) or recipe, recipe))


def read_recipe(folder: Folder) -> dict[str, Any] | None:
    """The recipe that a folder keeps, or None. Raises UserError when it cannot be read."""
    try:
        recipe = parse_object(folder.recipe.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{folder.recipe} cannot be read ({error.strerror}); name another job.output") from error
    if recipe is None:
        raise UserError(f"{folder.recipe} is damaged (no JSON object); restore it, or name another job.output")
    return recipe


def keep_recipe(folder: Folder, recipe: Mapping[str, Any]) -> None:
    """Write the recipe, unless it is there: it is the folder's from its first request on."""
    if not folder.recipe.exists():
        text = json.dumps(recipe, indent=2, ensure_ascii=False)
        write_whole(folder.recipe, lambda temp: temp.write_text(text + "\n", encoding="utf-8"))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:12]}..."
