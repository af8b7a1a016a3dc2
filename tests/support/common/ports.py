"""TCP ports for the servers of tests. Concurrent test processes on this machine get different ports."""

from __future__ import annotations

import fcntl
import functools
import itertools
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Below 32,768, where Linux's ephemeral ports begin: an outgoing connection could use the port of a killed server before it
# restarts. Above the ports that `tandem up --base-port 0` uses.
_FIRST = 30_000
_BLOCK = 90
_BLOCKS = 30


def free_port() -> int:
    """A TCP port that is free now. The same port comes again only after all others of this process's block."""
    return next(port for port in _block() if _is_free(port))


@functools.cache
def _block() -> Iterator[int]:
    """Endless cycle of the ports in the first block that no other living process holds."""
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
    raise RuntimeError(f"all {_BLOCKS} blocks of ports are in use by test processes on this machine")


# Kept open, and with them their locks, until this process ends.
_held: list[object] = []


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Servers set this too, so that a port whose old connections are in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
