"""Commands of tests that always end: one that takes too long says where each of its processes stands, and is gone."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil

# What a process that is ended with SIGABRT says of its threads.
TELLS_WHERE = {"PYTHONFAULTHANDLER": "1"}


def run_command(
    command: Sequence[object], *, timeout: float, env: Mapping[str, str] | None = None, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run(capture_output=True, text=True), which waits forever where a command that it has killed leaves
    processes of its own: torchrun's ranks hold the pipes. Raises AssertionError after `timeout` seconds."""
    environment = {**(os.environ if env is None else env), **TELLS_WHERE}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([str(word) for word in command], env=environment, **pipes, **settings) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException as error:
            abort([process.pid])
            out, errors = process.communicate(timeout=30)  # whose parent was gone before, has the pipes still
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise AssertionError(f"{error}\n{out[-5000:]}\n{errors[-20000:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def abort(roots: Sequence[int], seconds: float = 5.0) -> None:
    """End these processes and all that they have started, each with a word on where it stood."""
    family: list[psutil.Process] = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(root)
            family += [*process.children(recursive=True), process]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGABRT)
    _, alive = psutil.wait_procs(family, timeout=seconds)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
