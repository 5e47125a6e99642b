"""What a file becomes for an argument: chosen by what the file holds, what the annotation says, and, last, the name."""

import re
from collections.abc import Sequence

from runner.errors import UserError
from runner.inputs.input_file import Form
from runner.inputs.named import NamedFile
from runner.inputs.probe import Kind, Probe
from runner.inputs.takes import Takes

# diffusers annotates many an argument as a tensor that takes pictures as well, or alone (FluxFillPipeline's image), and
# there is no type for sound. Where the annotation says only `tensor`, the name tells.
_OF_PICTURES = re.compile(r"image|video|frame")
_OF_SOUND = re.compile(r"audio|wave|sound|music|speech|voice")
_OF_NUMBERS = re.compile(r"latent|embed|_ids|_grid")


def form_of(file: NamedFile, kind: Kind) -> tuple[Form, bool]:
    """The form, and whether it stands in a list of one, where the argument takes only lists. Raises UserError."""
    takes = file.takes
    if kind is Kind.animation:
        is_video = "video" in file.name or (takes.has_pictures and not takes.picture)
        kind = Kind.video if is_video else Kind.picture
    form = _NATURAL[kind]
    if not takes.is_known:
        return form, False
    if kind is Kind.video and _takes_frames(takes, file.name):
        return form, False
    for one, in_list in ((takes, False), (takes.item, True)):
        if one is None:
            continue
        if form is Form.array and one.tensor and not one.array:
            return Form.tensor, in_list
        if _holds(one, form, file.name):
            return form, in_list
    raise UserError(f"{file.where}: {file.written} is {kind.value}, but {file.name} takes {takes.words()}")


_NATURAL = {
    Kind.picture: Form.picture,
    Kind.video: Form.frames,
    Kind.sound: Form.sound,
    Kind.array: Form.array,
    Kind.tensors: Form.tensor,
}


def _takes_frames(takes: Takes, name: str) -> bool:
    if takes.has_pictures:
        return takes.item is not None and (takes.item.has_pictures or not takes.item.is_known)
    return takes.tensor and _is_of(_OF_PICTURES, name)


def _holds(takes: Takes, form: Form, name: str) -> bool:
    if form is Form.picture:
        return takes.picture or (takes.tensor and not takes.has_pictures and _is_of(_OF_PICTURES, name))
    if form is Form.sound:
        return (takes.tensor or takes.array) and not takes.has_pictures and _is_of(_OF_SOUND, name)
    if form is Form.array:
        return takes.array
    return form is Form.tensor and takes.tensor


def _is_of(names: re.Pattern[str], name: str) -> bool:
    return names.search(name) is not None and _OF_NUMBERS.search(name) is None


def tensor_of(file: NamedFile, probe: Probe) -> str:
    """Of a file of tensors, the one that is asked for; else the only one; else that of the argument's own name."""
    names: Sequence[str] = list(probe.tensors)
    wanted = file.tensor or (names[0] if len(names) == 1 else file.name)
    if wanted in names:
        return wanted
    known = ", ".join(names[:20])
    raise UserError(
        f"{file.where}: {file.written} holds {known}; say which, {{file: {file.written}, tensor: {names[0]}}}"
    )
