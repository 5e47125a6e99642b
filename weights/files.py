"""The files of a model, read and refused in one line: which file it is, what is wrong with it, and what to do."""

import errno
import json
import os
from pathlib import Path
from typing import Any

LFS_POINTER = b"version https://git-lfs"  # what git leaves in the place of a large file that it did not fetch


class FileError(ValueError):
    """A file of a model is not there, cannot be read, or is not what its name says; the message names it and the fix.

    A plain text in `args`, so that the error can be sent to other ranks.
    """


def why_unreadable(path: Path, error: OSError | ValueError) -> str:
    """What the system says of a path that it could not open, and what to do about it."""
    if isinstance(error, ValueError):  # a null byte, or half of a surrogate pair
        return f"{path!s:.200} is no name that a file can have ({error})".encode(errors="replace").decode()
    # exists() itself raises for a folder on the way that may not be entered.
    if error.errno == errno.ENOENT and path.is_symlink():
        target = os.readlink(path)
        return f"{path} is a link to {target}, which is not there: copy the file itself (cp -L), or download it again"
    if error.errno == errno.ENOENT:
        return f"{path} is not there: the download or copy is incomplete; copy it again"
    fix = {
        errno.EACCES: "; let this user read it (chmod)",
        errno.EPERM: "; let this user read it (chmod)",
        errno.EMFILE: "; raise the limit of open files (ulimit -n)",
        errno.ENFILE: "; raise the system's limit of open files",
        errno.EISDIR: "; put the file itself there",
    }
    return f"{path} cannot be read: {error.strerror or error}{fix.get(error.errno or 0, '')}"


def read_bytes(path: Path) -> bytes:
    """All of a small file. Raises FileError, also for what git-LFS left in the file's place."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise FileError(why_unreadable(path, error)) from error
    if content.startswith(LFS_POINTER):
        raise FileError(f"{path} is a git-LFS pointer, not the file itself: run `git lfs pull` in its folder")
    return content


def read_text(path: Path) -> str:
    """A text file in UTF-8. Raises FileError."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); copy it again") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object, as all configurations and indexes of the libraries are. Raises FileError."""
    text = read_text(path)
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise FileError(f"{path} is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        fix = "it is a web page: download the file itself" if text.lstrip().startswith("<") else "copy it again"
        raise FileError(f"{path} is not JSON ({error}); {fix}") from error
    if not isinstance(found, dict):
        raise FileError(f"{path} holds a {_json_name(found)}, not an object {{...}}; copy it again")
    return found


def _json_name(found: object) -> str:
    return {list: "list", str: "text", bool: "truth value", type(None): "null"}.get(type(found), "number")
