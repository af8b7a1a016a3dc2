"""Strangers at a port: many sockets of one address that send a byte and then nothing."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

STRANGERS = 2_300
"""Sockets of a crowd: more than a port's connections of known senders."""
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"


@contextmanager
def crowd(port: int, *, number: int = STRANGERS, at: str = HERE) -> Iterator[list[socket.socket]]:
    """Opens the sockets of a crowd, and closes them at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number + 500:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number + 500, hard))
    with ExitStack() as stack:
        sockets = []
        for _ in range(number):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30, source_address=(at, 0)))
            stranger.send(b"P")
            sockets.append(stranger)
        yield sockets
