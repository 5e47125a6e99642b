"""The torchrun agent that started this process: dying with it, and seeing to it that it does not stay behind."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from runner.errors import JobFault

SECONDS = 8  # what an agent needs to end by itself is 2 to 4
# Of the agent's death. One that nobody else sends, and that ends the process while nothing handles it.
DEATH_SIGNAL = signal.SIGUSR2


def agent_pid() -> int | None:
    """None under a plain `python`, whose parent may come and go: `nohup` is there for that."""
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def end_with_agent() -> None:
    """Have the kernel send DEATH_SIGNAL when the agent dies.

    torchrun's workers outlive an agent that is killed; before the watch runs, they would wait for each other for
    minutes. The signal comes when the agent's first thread is gone, up to a second before the parent's id changes.
    Raises JobFault where the agent is gone already.
    """
    if agent_pid() is not None and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, DEATH_SIGNAL)
        if _is_orphan():  # of an agent that was gone before: the kernel has nothing to tell
            raise JobFault("its torchrun agent is gone")


def tell_agent(cause: str) -> None:
    """Have torchrun's own report of a failed rank say why, in the file that it gave the rank for that."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and not os.path.exists(path):
        # The summary shows what stands where a traceback would.
        told = {"message": cause, "extraInfo": {"py_callstack": cause, "timestamp": str(int(time.time()))}}
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": told}, file)


def _is_orphan() -> bool:
    """Whether the parent is the system's first process, and that is no torchrun (as it is in some containers)."""
    if os.getppid() != 1:
        return False
    try:
        command = Path("/proc/1/cmdline").read_bytes()
    except OSError:
        return False
    return b"torch" not in command and b"accelerate" not in command


def end_agent_later(agent: int | None) -> None:
    """Leave a process behind that ends the agent, should it still be there after some seconds; else it goes first.

    An agent that is cut off from the rendezvous store waits for it inside C code, deaf to signals: for minutes, or for
    ever. It has nothing to do once its ranks are gone.
    """
    if agent is not None and os.getppid() == agent:
        script = f'for _ in $(seq {SECONDS}); do sleep 1; kill -0 "$0" || exit 0; done; kill -9 "$0"'
        null = subprocess.DEVNULL
        subprocess.Popen(["sh", "-c", script, str(agent)], stdin=null, stdout=null, stderr=null, start_new_session=True)
