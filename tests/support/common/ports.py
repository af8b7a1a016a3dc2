"""Ports for the servers of tests, which no other test process on this machine is given meanwhile."""

from __future__ import annotations

import fcntl
import functools
import itertools
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Below 32,768, where Linux takes the near ends of connections from: such an end may hold a port whose server was killed
# when it starts again. Above those that `tandem up --base-port 0` takes.
_FIRST = 30_000
_BLOCK = 90
_BLOCKS = 30


def free_port() -> int:
    """A TCP port that nobody uses now, the same again only after all others of this process's block."""
    return next(port for port in _block() if _is_free(port))


@functools.cache
def _block() -> Iterator[int]:
    """The ports of the first block that no living process has, in turn for ever."""
    folder = Path(tempfile.gettempdir()) / "tandem-test-ports"
    folder.mkdir(exist_ok=True)
    for number in range(_BLOCKS):
        held = (folder / str(number)).open("w")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.close()
            continue
        _held.append(held)
        first = _FIRST + number * _BLOCK
        return itertools.cycle(range(first, first + _BLOCK))
    raise RuntimeError(f"{_BLOCKS} processes test on this machine already")


# Open for as long as this process lives, and with it the lock.
_held: list[object] = []


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do, so that a port with connections that are only waiting to be forgotten counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
