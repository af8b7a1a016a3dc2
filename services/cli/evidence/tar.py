"""A tar file whose bytes follow from its members alone, and its strict reading: each bit that differs is an error with a place."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from services.cli.terminal import printable

BLOCK = 512
_END = bytes(2 * BLOCK)
_SIZE = re.compile(rb"[0-7]{11}\0")


class CorruptArchive(Exception):
    """The file isn't as it was made; says where and why."""

    def __init__(self, member: str, offset: int | None, reason: str) -> None:
        super().__init__(reason)
        self.member = member
        """Name of the member, or of what stands before or behind it."""
        self.offset = offset
        """Where in the member's content it differs, bytes, to the chunk; None where it can't be told."""
        self.reason = reason

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at byte {self.offset}"
        return printable(f"{self.member}{at}: {self.reason}")


def write(members: Mapping[str, bytes]) -> bytes:
    """The tar file: members in the order of their names, times and owners 0."""
    return b"".join(_header(name, len(members[name])) + _padded(members[name]) for name in sorted(members)) + _END


def read(data: bytes, names: Collection[str]) -> dict[str, bytes]:
    """The members of a file that `write` made, each with one of these names.

    Raises Broken at the first byte around them that `write` wouldn't have written. Names are unique, since they ascend.
    """
    found: dict[str, bytes] = {}
    at, last = 0, "the beginning"
    while data[at : at + BLOCK] != bytes(BLOCK):
        header = data[at : at + BLOCK]
        place = f"the header behind {last}"
        name, size = _parse(header, place, at)
        if header != _header(name, size):
            raise CorruptArchive(place, None, f"isn't what it was (file's byte {at})")
        if name not in names:
            raise CorruptArchive(place, None, f"names a member that no bundle has: {name!r}")
        if found and name <= last:
            raise CorruptArchive(place, None, "names a member out of order")
        content = data[at + BLOCK : at + BLOCK + size]
        if len(content) < size:
            raise CorruptArchive(name, len(content), "ends too early")
        block = data[at + BLOCK : at + len(_header(name, size)) + len(_padded(content))]
        if block != _padded(content):
            raise CorruptArchive(name, size, "is followed by bytes that aren't zero")
        found[name], last = content, name
        at += BLOCK + len(block)
    if data[at:] != _END:
        raise CorruptArchive("the end of the file", None, f"isn't what it was (behind the file's byte {at})")
    return found


def _parse(header: bytes, place: str, at: int) -> tuple[str, int]:
    try:
        if _SIZE.fullmatch(header[124:136]):
            return header[:100].rstrip(b"\0").decode("ascii"), int(header[124:135], 8)
    except ValueError:
        pass
    raise CorruptArchive(place, None, f"isn't what it was (file's byte {at})")


def _header(name: str, size: int) -> bytes:
    """A ustar header."""
    fields = [
        name.encode().ljust(100, b"\0"),
        b"0000400\0" + b"0000000\0" * 2,
        b"%011o\0" % size,
        b"%011o\0" % 0,
        b" " * 8,
        b"0",
        bytes(100),
        b"ustar\x0000",
    ]
    header = b"".join(fields).ljust(BLOCK, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)
