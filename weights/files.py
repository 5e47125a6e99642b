"""The files of a model, read and refused in one line: which file it is, what is wrong with it, and what to do."""

import errno
import json
import os
from pathlib import Path
from typing import Any


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


def read_text(path: Path) -> str:
    """A text file in UTF-8. Raises FileError."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); copy it again") from error
    except (OSError, ValueError) as error:
        raise FileError(why_unreadable(path, error)) from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object, as all configurations and indexes of the libraries are. Raises FileError."""
    text = read_text(path)
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise FileError(f"{path} is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise FileError(f"{path} is not JSON ({error}); {_what_else(text)}") from error
    if not isinstance(found, dict):
        raise FileError(f"{path} holds a {_json_name(found)}, not an object {{...}}; copy it again")
    return found


def _what_else(text: str) -> str:
    start = text.lstrip()[:20].lower()
    if start.startswith("version https://git"):
        return "it is a git-LFS pointer: run `git lfs pull` in its folder"
    if start.startswith("<"):
        return "it is a web page: download the file itself"
    return "copy it again"


def _json_name(found: object) -> str:
    return {list: "list", str: "text", bool: "truth value", type(None): "null"}.get(type(found), "number")
