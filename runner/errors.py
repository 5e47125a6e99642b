"""The user's mistakes and what ends a job, told apart from ours; and what the process's exit code says of them."""

from enum import IntEnum


class UserError(ValueError):
    """Something the user can mend; the message says what is wrong, where, and what to do.

    Shown without a traceback, in one line: what it quotes of a file or a library may have more.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class JobFault(RuntimeError):
    """The job cannot go on, whatever request is being made: its try does not count."""


class ExitCode(IntEnum):
    """torchrun turns every code but 0 into 1; run.json carries the same meaning."""

    DONE = 0  # every request is made
    FAILED = 1  # every request was tried; some failed, see failures.jsonl
    WRONG = 2  # the command or its input is wrong; nothing was made
    STOPPED = 3  # asked to stop, with work left: the same command goes on
    FAULT = 4  # a rank was lost, stuck or out of memory, or the disk is full: the same command goes on
    DIFFERS = 5  # what was to be made is; --verify found a request that the stock pipeline makes otherwise
