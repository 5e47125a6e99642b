"""Two nodes on one machine: network namespaces on a bridge, with process ids, host name and mounts of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

BRIDGE = "ditbr0"
SUBNET = "10.77.0"
NUM_NODES = 2


def why_not() -> str | None:
    """Why this machine cannot play two nodes; None when it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces take root"
    missing = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (iproute2, util-linux)"
    probe = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, text=True
    )
    return f"no namespaces here: {probe.stderr.strip()}" if probe.returncode else None


class Nodes:
    """The nodes n1, n2, ... at 10.77.0.1, .2, ...; this process is outside, at .254."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []
        (folder / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{SUBNET}.{i} n{i}\n" for i in range(1, NUM_NODES + 1))
        )
        (folder / "nsswitch.conf").write_text("hosts: files\npasswd: files\ngroup: files\n")

    def command(self, node: int, command: Sequence[str]) -> list[str]:
        """`command` as it runs on the node. Killing it kills all that it started there.

        The shell stays as the node's process 1 (which cannot be killed from inside) until the last rank is gone.
        """
        serve = '"$@"; code=$?; while pgrep -f generate.py >/dev/null; do sleep 0.1; done; exit $code'
        inside = (
            f"hostname n{node}; mount --bind {self.folder}/hosts /etc/hosts; "
            f"mount --bind {self.folder}/nsswitch.conf /etc/nsswitch.conf; {serve}"
        )
        # `ip netns exec` would mount /sys anew, which slurmd does not survive.
        enter = ["nsenter", f"--net=/run/netns/{_name(node)}"]
        apart = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return [*enter, *apart, "bash", "-c", inside, "node", *command]

    def start(
        self, node: int, command: Sequence[str], *, log: Path, cwd: Path, env: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as stream:
            process = subprocess.Popen(
                self.command(node, command), stdout=stream, stderr=stream, cwd=cwd, env=env, start_new_session=True
            )
        self.started.append(process)
        return process

    def link(self, node: int, state: str) -> None:
        """Cut the node off (`down`), or connect it again (`up`)."""
        _ip("link", "set", f"{_name(node)}v", state)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """As if the node lost power: everything in it dies."""
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        process.wait()


@contextmanager
def nodes(folder: Path) -> Iterator[Nodes]:
    folder.mkdir(parents=True, exist_ok=True)
    _remove()
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{SUBNET}.254/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    for i in range(1, NUM_NODES + 1):
        name = _name(i)
        _ip("netns", "add", name)
        _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", f"{name}v", "master", BRIDGE, "up")
        _ip("-n", name, "addr", "add", f"{SUBNET}.{i}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
    box = Nodes(folder)
    try:
        yield box
    finally:
        for process in box.started:
            if process.poll() is None:
                box.kill(process)
        _remove()


def processes_with(text: str) -> list[psutil.Process]:
    """Every process whose command line holds `text`, but this one and its parents."""
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if process.pid not in ours and text in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_until(condition, seconds: float, what: str) -> float:  # type: ignore[no-untyped-def]
    """The seconds it took for `condition()` to hold."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - start


def _name(node: int) -> str:
    return f"ditn{node}"


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)


def _remove() -> None:
    """The link goes before its namespace: the other way around the kernel takes its time."""
    for i in range(1, NUM_NODES + 1):
        _ip("link", "del", f"{_name(i)}v", check=False)
        _ip("netns", "del", _name(i), check=False)
    _ip("link", "del", BRIDGE, check=False)
