"""Connections between rank 0 and every other rank, beside the process group: JSON lines over TCP.

[Note: why not the process group or its store]
A rank that dies closes its sockets, whatever kills it, and the kernel tells the other end at once: no waiting, and no
false alarm when a rank is only slow. The group's store tells nobody, and a collective tells only those inside one,
which may be minutes away while each rank makes a request of its own.
"""

import json
import os
import secrets
import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist

from runner.errors import UserError
from runner.health.fault import Status
from runner.health.messages import Message, decode, encode
from runner.world import World
from weights.agreement import from_first, on_all_ranks

CONNECT_SECONDS = 10.0
JOIN_SECONDS = 60.0


class Link:
    """One connection. Never blocks: the thread that watches must not wait for a peer that has stopped."""

    def __init__(self, peer: int, connection: socket.socket) -> None:
        self.peer = peer
        self.heard = time.monotonic()  # when the peer last said anything
        self.said_bye = False
        self.status = Status(rank=peer)
        self._socket = connection
        self._buffer = b""
        connection.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Best effort: what a stopped or dead peer does not take is lost on it anyway."""
        try:
            self._socket.sendall(encode(message))
        except OSError:
            return

    def receive(self) -> list[Message] | None:
        """The whole messages that have come in, or None when the peer has closed the connection."""
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [message for message in map(decode, lines) if message is not None]

    def close(self) -> None:
        self._socket.close()


class Waiting:
    """Waits for whichever of some sockets has something to read. Kept from one wait to the next: links may be many."""

    def __init__(self, watched: Iterable[Any]) -> None:
        self._selector = selectors.DefaultSelector()
        for one in watched:
            self._selector.register(one, selectors.EVENT_READ)

    def wait(self, seconds: float) -> list[Any]:
        return [key.fileobj for key, _ in self._selector.select(seconds)]

    def leave_out(self, one: Any) -> None:
        self._selector.unregister(one)


def connect(world: World) -> list[Link]:
    """On rank 0 a link to every other rank, in rank order; on those one to rank 0. Collective."""
    if world.size == 1:
        return []
    listener = socket.create_server(("", 0), backlog=world.size) if world.rank == 0 else None
    token = secrets.token_hex(16)
    offer = (_addresses(), listener.getsockname()[1], token) if listener else None
    # In the group that gives up on a rank that does not come: nobody watches yet.
    addresses, port, token = from_first(offer, dist.group.WORLD)
    if listener is None:
        return [on_all_ranks(lambda: _join(addresses, port, token, world.rank), dist.group.WORLD)]
    with listener:
        return on_all_ranks(lambda: list(_admit(listener, token, world.size)), dist.group.WORLD)


def _addresses() -> list[str]:
    """Names by which other nodes may reach this one, the likeliest first."""
    master = os.environ.get("MASTER_ADDR", "localhost")
    port = int(os.environ.get("MASTER_PORT", "1"))
    names = [_source_address(master, port), socket.gethostname(), master]
    return list(dict.fromkeys(name for name in names if name))


def _source_address(host: str, port: int) -> str | None:
    """The address of ours on the route to the group's store. Connecting a datagram socket sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return probe.getsockname()[0]
    except OSError:
        return None


def _join(addresses: list[str], port: int, token: str, rank: int) -> Link:
    refusals = []
    for address in addresses:
        try:
            connection = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
            connection.sendall(json.dumps({"rank": rank, "token": token}).encode() + b"\n")
            if connection.recv(1) == b"\n":  # a stranger at a loopback address would not know the token
                return Link(0, connection)
            refusals.append(f"{address}: not rank 0")
        except OSError as error:
            refusals.append(f"{address}: {error}")
    raise UserError(
        f"rank {rank} on {socket.gethostname()} cannot reach rank 0 on port {port} ({'; '.join(refusals)}); "
        "let the nodes open connections to each other"
    )


def _admit(listener: socket.socket, token: str, size: int) -> Iterator[Link]:
    """A link for every other rank. Connections without the token are closed."""
    links: dict[int, Link] = {}
    deadline = time.monotonic() + JOIN_SECONDS
    while len(links) < size - 1:
        listener.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            connection, _ = listener.accept()
            connection.settimeout(CONNECT_SECONDS)
            hello = json.loads(connection.makefile().readline(256) or "{}")
            known = isinstance(hello, dict) and hello.get("token") == token
        except TimeoutError:
            missing = sorted(set(range(1, size)) - set(links))
            raise UserError(f"rank(s) {missing} did not reach rank 0; let the nodes connect to each other") from None
        except (OSError, ValueError):
            continue
        if not known:
            connection.close()
            continue
        connection.sendall(b"\n")
        links[hello["rank"]] = Link(hello["rank"], connection)
    yield from (links[rank] for rank in sorted(links))
