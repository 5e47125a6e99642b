"""What the process's exit code says. torchrun turns every one but 0 into 1; run.json carries the same meaning."""

from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0  # every request is made
    FAILED = 1  # every request was tried; some failed, see failures.jsonl
    WRONG = 2  # the command or its input is wrong; nothing was made
    STOPPED = 3  # asked to stop, with work left: the same command goes on
    FAULT = 4  # a rank was lost, stuck or out of memory, or the disk is full: the same command goes on
