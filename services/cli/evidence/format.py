"""Format of evidence bundles: names of members, sizes, nesting, and the type of every field. Anything else is an error.

The signer of a bundle may want to deceive its reader or to crash the reader's program. So every part is checked here before any use
or output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from services.cli.evidence.tar import CorruptArchive
from services.cli.terminal import printable
from services.common import times
from services.common.messaging import flow
from services.common.messaging.streams import MAX_PARTITIONS
from services.dispatch.evidence.model import EVIDENCE_LEGS

README, MANIFEST, SIGNATURE, REPLAY = "README.txt", "manifest.json", "signature.json", "replay.json"
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
