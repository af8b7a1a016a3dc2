"""The file of an evidence bundle: a tar whose bytes depend on its members alone, with a signed manifest and strict forms of all fields.

The signer of a bundle may want to deceive its reader or to crash the reader's program. So every part is checked here before any use
or output, and the strict reader reports any changed bit with its place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError, Message

from services.common import times
from services.common.evidence.model import StoredMessage, of_fields
from services.common.failure import printable
from services.common.messaging import flow
from services.common.messaging.streams import MAX_PARTITIONS
from services.common.privacy.secret_keys import open_keys
from services.dispatch.domain.leg import EVIDENCE_LEGS
from tandem.common.v1 import alert_pb2

README = "README.txt"
MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
REPLAY = "replay.json"
STREAMED: Mapping[str, Callable[[int], str]] = {
    "log.jsonl": flow.log_stream,
    "alerts.jsonl": lambda _: flow.ALERTS.name,
    "measures.jsonl": lambda _: flow.MEASURES.name,
    "dead_letters.jsonl": lambda _: flow.DEAD_LETTERS.name,
}
"""Members with records of a stream, each with a function from partition to stream name."""
CHAINS = {f"chain-{leg}.jsonl": leg for leg in flow.LEGS}
NAMES = frozenset({README, MANIFEST, SIGNATURE, REPLAY, *STREAMED, *CHAINS})
"""Names of all possible members."""
MAX_BUNDLE_BYTES = 1 << 30
MAX_LINES = 4_000_000
"""Maximum number of lines per member."""
MAX_LINE_BYTES = 16 << 20
"""Maximum length of a line: twice the size of a stream's largest message in base64."""
MAX_DEPTH = 16
"""Maximum nesting depth of objects and lists."""
MAX_TEXT_CHARS = 1 << 20
MAX_ITEMS = 10_000
"""Maximum length of a list, except the list of a member's chunk hashes."""
_INT64 = 1 << 63

Check = Callable[[Any], str]
"""A check of a value: returns the error, prefixed with the field's path, or an empty text."""


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def lines_of(member: str, content: bytes) -> list[bytes]:
    """The lines of a member. Raises CorruptArchive if a line is too long, or if the last line has no line feed."""
    if not content:
        return []
    if not content.endswith(b"\n"):
        raise CorruptArchive(member, None, "its last line has no line feed")
    if content.count(b"\n") > MAX_LINES:
        raise CorruptArchive(member, None, f"has more than {MAX_LINES} lines")
    lines = content.split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE_BYTES:
            raise CorruptArchive(member, None, f"line {number} has more than {MAX_LINE_BYTES} bytes")
    return lines


def parsed(member: str, content: str | bytes, shape: Check, *, line: int | None = None) -> Any:
    """Parses the JSON of a member or of one of its lines, and checks it by `shape`. Raises CorruptArchive."""
    where = "" if line is None else f"line {line}: "
    try:
        text = content.decode() if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise CorruptArchive(member, None, f"{where}is nested deeper than {MAX_DEPTH}") from None
    except UnicodeDecodeError:
        raise CorruptArchive(member, None, f"{where}isn't UTF-8") from None
    except _Fault as fault:
        raise CorruptArchive(member, None, f"{where}{fault}") from None
    except ValueError:
        raise CorruptArchive(member, None, f"{where}isn't JSON") from None
    if _is_deeper(value, MAX_DEPTH):
        raise CorruptArchive(member, None, f"{where}is nested deeper than {MAX_DEPTH}")
    if error := shape(value):
        raise CorruptArchive(member, None, f"{where}{error}")
    return value


class _Fault(ValueError):
    """A JSON text has a duplicate name or a forbidden constant."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Fault(f"{_named(twice)}: is there twice")
    return unique


def _no_constant(name: str) -> NoReturn:
    raise _Fault(f"{name} isn't a JSON number")


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(inner, dict | list) for inner in level)


def _named(name: str) -> str:
    """A field's name for an error text, printable and shortened."""
    return printable(name if len(name) <= 64 else name[:64] + "...")


# ── types of values ──────────────────────────────────────────────────────────────────────────────────────────────────


def whole(least: int = 0, greatest: int = _INT64 - 1) -> Check:
    """Check for a whole number in this range."""

    def check(value: Any) -> str:
        # isinstance would accept a bool.
        return (
            ""
            if type(value) is int and least <= value <= greatest
            else f"must be a whole number from {least} to {greatest}"
        )

    return check


def text(pattern: str = r"(?s:.*)", what: str = "a text", max_chars: int = MAX_TEXT_CHARS) -> Check:
    """Check for a text that matches the pattern; `what` describes the text in the error."""
    fits = re.compile(pattern)

    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > max_chars or not fits.fullmatch(value):
            return f"must be {what}"
        return ""

    return check


def choice(*values: str) -> Check:
    """Check for one of these texts."""
    return lambda value: "" if isinstance(value, str) and value in values else f"must be one of {', '.join(values)}"


def flag(value: Any) -> str:
    """Check for true or false."""
    return "" if isinstance(value, bool) else "must be true or false"


def list_of(item: Check, greatest: int = MAX_ITEMS) -> Check:
    """Check for a list whose values all pass `item`."""

    def check(value: Any) -> str:
        if not isinstance(value, list) or len(value) > greatest:
            return f"must be a list of at most {greatest}"
        return next((f"[{at}] {error}" for at, element in enumerate(value) if (error := item(element))), "")

    return check


def row_of(*items: Check) -> Check:
    """Check for a list with exactly one value per check."""

    def check(value: Any) -> str:
        if not isinstance(value, list) or len(value) != len(items):
            return f"must be a list of {len(items)}"
        pairs = enumerate(zip(items, value, strict=True))
        return next((f"[{at}] {error}" for at, (item, element) in pairs if (error := item(element))), "")

    return check


def record(fields: Mapping[str, Check], optional: Sequence[str] = ()) -> Check:
    """Check for an object with exactly these fields, of which `optional` may be absent."""

    def check(value: Any) -> str:
        if not isinstance(value, dict):
            return "must be an object"
        for name in value:
            if name not in fields:
                return f"{_named(name)}: is an unknown field"
        for name, inner in fields.items():
            if name not in value:
                if name in optional:
                    continue
                return f"{name}: is missing"
            if error := inner(value[name]):
                return f"{name}: {error}"
        return ""

    return check


def map_of(names: Sequence[str] | frozenset[str], item: Check) -> Check:
    """Check for an object with fields among `names`, whose values all pass `item`."""

    def check(value: Any) -> str:
        if not isinstance(value, dict):
            return "must be an object"
        for name, inner in value.items():
            if name not in names:
                return f"{_named(name)}: is an unknown name"
            if error := item(inner):
                return f"{name}: {error}"
        return ""

    return check


# ── the members ──────────────────────────────────────────────────────────────────────────────────────────────────────

HEX_64 = text(r"[0-9a-f]{64}", "64 hex digits")
_ID = text(r"[A-Za-z0-9._/-]{1,160}", "1 to 160 characters of A-Z a-z 0-9 . _ - /")
_NAME = text(r"[ -~]{0,512}", "at most 512 printable ASCII characters")
_MS = whole(times.MIN_MS, times.MAX_MS)
_HEAD = row_of(whole(), text(r"([0-9a-f]{64})?", "64 hex digits, or empty"))
_HASHES = record(
    {
        "bytes": whole(0, MAX_BUNDLE_BYTES),
        "sha256": HEX_64,
        "chunks": list_of(HEX_64, greatest=MAX_BUNDLE_BYTES // 1024 + 1),
    }
)
SIGNATURE_SHAPE = record(
    {
        "algorithm": _NAME,
        "manifest": _HASHES,
        "public_key": HEX_64,
        "signature": text(r"[0-9a-f]{128}", "128 hex digits"),
    }
)
MANIFEST_SHAPE = record(
    {
        "format": whole(1, 1),
        "members": map_of(NAMES - {MANIFEST, SIGNATURE}, _HASHES),
        "incident_id": _ID,
        "for": choice(*EVIDENCE_LEGS),
        "wearer_id": text(r"[A-Za-z0-9._/-]{0,160}", "an id, or empty"),
        "order_ids": list_of(_ID),
        "ended": flag,
        "whole": flag,
        "chains": map_of(flow.LEGS, record({"head": _HEAD})),
        "chains_missing": list_of(choice(*flow.LEGS), greatest=len(flow.LEGS)),
        "fold_version": whole(),
        "log": record({"log_id": _NAME, "partition": whole(0, MAX_PARTITIONS - 1), "window_stamp_ms": _MS}),
        "clock": record(
            {
                "rate": whole(1, 1_000_000),
                "anchor_ms": _MS,
                "stamp_after_receipt_ms": list_of(whole(-_INT64, _INT64 - 1), greatest=2),
            }
        ),
        "made_at_ms": _MS,
        "made_by": _NAME,
        "made_for": _NAME,
        "legal_basis": _NAME,
        "software": _NAME,
    }
)
CHAIN_SHAPE = record({"leg": choice(*flow.LEGS), "before": _HEAD, "head": _HEAD})
EVENT_SHAPE = record(
    {
        "id": whole(1),
        "hash": HEX_64,
        "incident_id": _ID,
        "kind": text(r"[A-Za-z]{1,64}", "the name of a kind of event"),
        "body": text(),
    },
    optional=("incident_id", "kind", "body"),
)
RECORD_SHAPE = record(
    {
        "stream": _NAME,
        "sequence": whole(1),
        "stamp_ms": _MS,
        "subject": _NAME,
        "data": text(r"[A-Za-z0-9+/]*={0,2}", "base64", MAX_LINE_BYTES),
        "cut": flag,
        "premise": flag,
        "sha256": text(r"([0-9a-f]{64})?", "64 hex digits, or empty"),
    }
)
_BODY_FIELDS: Mapping[str, Check] = {"at_ms": _MS, "by": text(), "alert_id": text(), "place": row_of(whole(), whole())}


def body_shape(value: Any) -> str:
    """Check for an event's body: the fields used here must have their types, and other fields are free."""
    if not isinstance(value, dict):
        return "must be an object"
    if "at_ms" not in value:
        return "at_ms: is missing"
    for name, check in _BODY_FIELDS.items():
        if name in value and (error := check(value[name])):
            return f"{name}: {error}"
    return ""


def check_members(names: Sequence[str], manifest: Mapping[str, Any]) -> None:
    """Raises CorruptArchive if a member that the manifest requires is missing, or if there is another one."""
    legs = set(manifest["chains"])
    wanted = {README, MANIFEST, SIGNATURE, *STREAMED, *(name for name, leg in CHAINS.items() if leg in legs)}
    if manifest["for"] == "police":
        wanted.add(REPLAY)
    for name in sorted(wanted - set(names)):
        raise CorruptArchive(name, None, "is missing")
    for name in sorted(set(names) - wanted):
        raise CorruptArchive(name, None, "doesn't belong in this bundle")
    if sorted(manifest["chains_missing"]) != sorted(set(flow.LEGS) - legs):
        raise CorruptArchive(MANIFEST, None, "chains_missing: must name the legs without a chain")


BLOCK = 512
_END = bytes(2 * BLOCK)
_MODE_AND_OWNERS = b"0000400\0" + b"0000000\0" * 2
"""What follows the name in each header."""
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


class NoBundle(CorruptArchive):
    """A file has no header of a bundle's member anywhere, so it never was a bundle."""

    def __init__(self) -> None:
        super().__init__(
            "the file", None, "is no evidence bundle: a bundle is the .tar file that `tandem evidence` writes"
        )

    def __str__(self) -> str:
        return self.reason


def write_tar(members: Mapping[str, bytes]) -> bytes:
    """Writes a tar file, with members in order of their names, and times and owners 0."""
    return b"".join(_header(name, len(members[name])) + _padded(members[name]) for name in sorted(members)) + _END


def read_tar(data: bytes, names: Collection[str]) -> dict[str, bytes]:
    """Reads the members of a file that `write` made. `names` are the permitted names.

    Raises CorruptArchive at the first byte outside the members' contents that `write` would have written differently, and NoBundle if
    nothing in the file was written by it. Names ascend, so they are unique.
    """
    try:
        return _members(data, names)
    except CorruptArchive:
        if any(name.encode().ljust(100, b"\0") + _MODE_AND_OWNERS in data for name in names):
            raise
        raise NoBundle from None


def _members(data: bytes, names: Collection[str]) -> dict[str, bytes]:
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
        _MODE_AND_OWNERS,
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


CHUNK = 1024
_SIGNED_PREFIX = b"tandem evidence manifest\n"


def canonical_json(content: Any) -> bytes:
    """Canonical JSON with sorted keys and a final line feed: equal contents give equal bytes."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def open_signing_key(path: Path) -> Ed25519PrivateKey:
    """Opens the signing key, and creates it if absent, readable by its owner only. Writes the public key to `<name>.pub`."""
    key = Ed25519PrivateKey.from_private_bytes(open_keys(path)[0])
    path.with_suffix(".pub").write_text(key.public_key().public_bytes_raw().hex())
    return key


def seal_members(members: Mapping[str, bytes], about: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, bytes]:
    """Adds manifest and signature to the members; `about` goes into the manifest."""
    manifest = canonical_json({**about, "members": {name: _hashes(content) for name, content in members.items()}})
    public_key = key.public_key().public_bytes_raw()
    return {
        **members,
        MANIFEST: manifest,
        SIGNATURE: _signature(manifest, key.sign(_SIGNED_PREFIX + manifest), public_key),
    }


def unseal_members(members: Mapping[str, bytes], public_key: bytes | None) -> tuple[dict[str, Any], bytes]:
    """Verifies sealed members. Returns the manifest and the public key of the signature.

    Raises CorruptArchive at the first change, or if manifest or signature have a form that `seal` doesn't write. Without `public_key`,
    the key in the bundle is used: this proves that the bundle is intact, not who made it.
    """
    for name in (MANIFEST, SIGNATURE):
        if name not in members:
            raise CorruptArchive(name, None, "is missing")
    manifest = members[MANIFEST]
    stated = parsed(SIGNATURE, members[SIGNATURE], SIGNATURE_SHAPE)
    signature, signed_by = bytes.fromhex(stated["signature"]), public_key or bytes.fromhex(stated["public_key"])
    try:
        Ed25519PublicKey.from_public_bytes(signed_by).verify(signature, _SIGNED_PREFIX + manifest)
    except (InvalidSignature, ValueError):
        _compare(MANIFEST, manifest, stated["manifest"])
        raise CorruptArchive(SIGNATURE, None, "the signature isn't that of the key over the manifest") from None
    _require_same(SIGNATURE, members[SIGNATURE], _signature(manifest, signature, signed_by))
    content: dict[str, Any] = parsed(MANIFEST, manifest, MANIFEST_SHAPE)
    wanted: dict[str, Any] = content["members"]
    for name in sorted(wanted.keys() | members.keys() - {MANIFEST, SIGNATURE}):
        if name not in members:
            raise CorruptArchive(name, None, "is missing")
        if name not in wanted:
            raise CorruptArchive(name, None, "isn't in the manifest")
        _compare(name, members[name], wanted[name])
        if _hashes(members[name]) != wanted[name]:
            raise CorruptArchive(MANIFEST, None, f"members: {name}: size or hashes don't match the member")
    return content, signed_by


def _signature(manifest: bytes, signature: bytes, public_key: bytes) -> bytes:
    fields = {"manifest": _hashes(manifest), "public_key": public_key.hex(), "signature": signature.hex()}
    return canonical_json(
        {"algorithm": "Ed25519 over 'tandem evidence manifest', a line feed, and manifest.json", **fields}
    )


def _hashes(content: bytes) -> dict[str, Any]:
    parts = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
    return {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "chunks": [hashlib.sha256(part).hexdigest() for part in parts],
    }


def _compare(name: str, content: bytes, wanted: Mapping[str, Any]) -> None:
    """Raises CorruptArchive at the first kibibyte whose hash differs from the signed one."""
    actual = _hashes(content)
    if actual == wanted:
        return
    chunks = wanted.get("chunks")
    if actual["sha256"] == wanted.get("sha256") or not isinstance(chunks, list):
        return  # the stated hashes are wrong, not the member; the caller reports that
    pairs = zip(actual["chunks"], chunks, strict=False)
    first = next((i for i, (is_, was) in enumerate(pairs) if is_ != was), min(len(actual["chunks"]), len(chunks)))
    raise CorruptArchive(name, first * CHUNK, f"differs within the {CHUNK} bytes from there")


def _require_same(name: str, content: bytes, wanted: bytes) -> None:
    if content == wanted:
        return
    at = next((i for i, (is_, was) in enumerate(zip(content, wanted, strict=False)) if is_ != was), len(wanted))
    raise CorruptArchive(name, at, "was altered")


_MESSAGES: Mapping[str, type[Message]] = {"alerts.jsonl": alert_pb2.Alert, "measures.jsonl": alert_pb2.Measure}
"""Message type of a member's records. Log entries aren't parsed: an unreadable entry belongs in the bundle, with its dead letter."""


def records_of(members: Mapping[str, bytes], partition: int) -> list[StoredMessage]:
    """The records of all members. Raises CorruptArchive at the first invalid record."""
    return [record for name in STREAMED for record in _records(name, members[name], partition)]


def _records(name: str, member: bytes, partition: int) -> list[StoredMessage]:
    stream, messages = STREAMED[name](partition), list[StoredMessage]()
    for number, line in enumerate(lines_of(name, member), 1):
        fields = parsed(name, line, RECORD_SHAPE, line=number)
        try:
            record = of_fields(fields)
        except ValueError as error:
            raise CorruptArchive(name, None, f"line {number}: {error}") from None
        if record.stream != stream:
            raise CorruptArchive(name, None, f"line {number}: stream: must be {stream}")
        if messages and record.sequence <= messages[-1].sequence:
            raise CorruptArchive(name, None, f"line {number}: sequence: must be greater than in the line before")
        _check_message(name, number, record)
        messages.append(record)
    return messages


def _check_message(name: str, number: int, record: StoredMessage) -> None:
    message = _MESSAGES.get(name)
    if message is None:
        return
    try:
        message.FromString(record.data)
    except DecodeError:
        raise CorruptArchive(name, None, f"line {number}: data: isn't a valid {message.DESCRIPTOR.name}") from None
