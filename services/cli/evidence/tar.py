"""Deterministic tar files: the bytes depend on the members only, and the strict reader reports any changed bit with its place."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from services.cli.terminal import printable

BLOCK = 512
_END = bytes(2 * BLOCK)
_SIZE = re.compile(rb"[0-7]{11}\0")


class CorruptArchive(Exception):
    """A bundle was altered or is malformed. The text names member, byte and reason."""

    def __init__(self, member: str, offset: int | None, reason: str) -> None:
        super().__init__(reason)
        self.member = member
        """Name of the member, or of a header or the end of the file."""
        self.offset = offset
        """Offset of the difference in the member, bytes, rounded down to the chunk; None if unknown."""
        self.reason = reason

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at byte {self.offset}"
        return printable(f"{self.member}{at}: {self.reason}")


def write(members: Mapping[str, bytes]) -> bytes:
    """Writes a tar file, with members in order of their names, and times and owners 0."""
    return b"".join(_header(name, len(members[name])) + _padded(members[name]) for name in sorted(members)) + _END


def read(data: bytes, names: Collection[str]) -> dict[str, bytes]:
    """Reads the members of a file that `write` made. `names` are the permitted names.

    Raises CorruptArchive at the first byte outside the members' contents that `write` would have written differently. Names ascend,
    so they are unique.
    """
    members: dict[str, bytes] = {}
    at, last = 0, "the beginning"
    while data[at : at + BLOCK] != bytes(BLOCK):
        header = data[at : at + BLOCK]
        place = f"the header behind {last}"
        name, size = _parse(header, place, at)
        if header != _header(name, size):
            raise CorruptArchive(place, None, f"was altered (file's byte {at})")
        if name not in names:
            raise CorruptArchive(place, None, f"names a member that no bundle has: {name!r}")
        if members and name <= last:
            raise CorruptArchive(place, None, "names a member out of order")
        content = data[at + BLOCK : at + BLOCK + size]
        if len(content) < size:
            raise CorruptArchive(name, len(content), "ends too early")
        block = data[at + BLOCK : at + len(_header(name, size)) + len(_padded(content))]
        if block != _padded(content):
            raise CorruptArchive(name, size, "is followed by bytes that aren't zero")
        members[name], last = content, name
        at += BLOCK + len(block)
    if data[at:] != _END:
        raise CorruptArchive("the end of the file", None, f"was altered (after the file's byte {at})")
    return members


def _parse(header: bytes, place: str, at: int) -> tuple[str, int]:
    try:
        if _SIZE.fullmatch(header[124:136]):
            return header[:100].rstrip(b"\0").decode("ascii"), int(header[124:135], 8)
    except ValueError:
        pass
    raise CorruptArchive(place, None, f"was altered (file's byte {at})")


def _header(name: str, size: int) -> bytes:
    """The ustar header of a member."""
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
