"""`python -m bench.attacker.stranger HOST PORT SOCKETS SECONDS`: sockets that connect, send a byte, and connect again without end.

They wait until the server closes them. A hundred more leave at once, and come again. It speaks no protocol and knows no token. It
refuses any host but loopback. Prints one JSON object: the connections that were opened, and those that the server closed.
"""

from __future__ import annotations

import errno
import json
import resource
import select
import socket
import struct
import sys
import time
from ipaddress import ip_address

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that leaves nothing behind: with the default this machine would soon have no free port."""
MAX_CONNECTING = 100
"""Sockets that connect at a time, beside those that wait. With more, the server's kernel drops packets of the stranger himself."""
BYTE = b"G"
"""The first byte of a request."""


class Crowd:
    """The sockets of one stranger."""

    def __init__(self, address: tuple[str, int]) -> None:
        if not ip_address(address[0]).is_loopback:
            raise SystemExit(
                f"HOST is {address[0]}: this program attacks loopback addresses alone (example: 127.0.0.1)"
            )
        self._address = address
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._waiting: set[int] = set()
        """Sockets that have sent their byte, and wait until the server closes them."""
        self._connecting = 0
        """Sockets that haven't sent their byte yet."""
        self.opened = 0
        self.cut_off = 0
        self.refused = 0

    def open(self) -> None:
        """Begins a connection."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.setblocking(False)
        if connection.connect_ex(self._address) not in (0, errno.EINPROGRESS):
            self.refused += 1
            connection.close()
            return
        self._sockets[connection.fileno()] = connection
        self._poll.register(connection, select.EPOLLOUT)
        self._connecting += 1

    def run(self, sockets: int, seconds: float) -> None:
        """Keeps this many sockets waiting for this time, seconds, and others coming and leaving."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            for _ in range(MAX_CONNECTING - self._connecting):
                self.open()
            for number, event in self._poll.poll(0.05):
                self._proceed(number, event, sockets)

    def _proceed(self, number: int, event: int, sockets: int) -> None:
        connection = self._sockets[number]
        if number in self._waiting:
            self.cut_off += 1
            self._leave(number)
            return
        self._connecting -= 1
        if event == select.EPOLLOUT:
            self.opened += 1
            try:
                connection.send(BYTE)
            except OSError:
                self.cut_off += 1
                self._leave(number)
                return
            if len(self._waiting) >= sockets:
                self._leave(number)
            else:
                self._waiting.add(number)
                self._poll.modify(connection, select.EPOLLIN)
        else:
            self.cut_off += 1
            self._leave(number)

    def _leave(self, number: int) -> None:
        self._waiting.discard(number)
        self._poll.unregister(number)
        self._sockets.pop(number).close()


def main() -> None:
    """Attacks until the time is over."""
    host, port, sockets, seconds = sys.argv[1:]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, int(sockets) + 2 * MAX_CONNECTING), hard))
    crowd = Crowd((host, int(port)))
    crowd.run(int(sockets), float(seconds))
    print(json.dumps({"opened": crowd.opened, "cut_off": crowd.cut_off, "refused": crowd.refused}))


if __name__ == "__main__":
    main()
