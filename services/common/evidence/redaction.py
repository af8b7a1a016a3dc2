"""Redaction of the log: selects the parts of each entry that one agency may have about one wearer.

An entry about several people keeps only the rows of devices that the agency may see. An entry about other people only is left out. If
such an entry moved the fold's clock, its time stamp stays. Redacted bytes get no hash: a hash would let a reader test guesses of a
person's position.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import zip_longest
from typing import Any, NamedTuple

from services.common.clock import MeshClock
from services.common.errors import InvalidField
from services.common.evidence.model import MARK_SUBJECT, StoredMessage
from services.common.messaging import pull, stored
from tandem.common.v1 import log_pb2


def entry_of(data: bytes) -> log_pb2.LogEntry:
    """Decodes an entry of the log. An unreadable entry becomes an empty entry, as the fold made it a dead letter."""
    try:
        return stored.entry(data)
    except InvalidField:
        return log_pb2.LogEntry()


def record_of(message: pull.Delivered, premise: bool = False) -> StoredMessage:
    """Converts a delivered message to a record, without redaction."""
    return StoredMessage(
        stream=message.stream,
        sequence=message.sequence,
        stamp_ms=message.stamp_ms,
        subject=message.subject,
        data=message.data,
        premise=premise,
    )


class Peaks:
    """Finds the greatest time stamp after a given entry. An entry that is left out may have moved the fold's clock."""

    def __init__(self) -> None:
        self._falling: list[pull.Delivered] = []
        """Entries in the order of the log, with time stamps that never increase."""

    def add(self, message: pull.Delivered) -> None:
        """Adds the next entry of the log."""
        while self._falling and self._falling[-1].stamp_ms < message.stamp_ms:
            self._falling.pop()
        self._falling.append(message)

    def after(self, sequence: int) -> pull.Delivered | None:
        """Returns the entry with the greatest time stamp after a sequence, or None if no entry follows."""
        at = bisect_right(self._falling, sequence, key=lambda message: message.sequence)
        return self._falling[at] if at < len(self._falling) else None


class HolderKind(Enum):
    """Kind of the holder of a device."""

    WEARER = 1
    PERSON = 2
    """A protected person."""


class Holder(NamedTuple):
    """The holder of a device."""

    kind: HolderKind
    id: str


class _HoldingPeriod(NamedTuple):
    """Period in which a device has one holder."""

    first: int
    """Sequence of the first entry of the period."""
    since_ms: int
    """Start, milliseconds of mesh time."""
    holder: Holder


class Holders:
    """History of the holders of each device, from the case snapshots of all wearers. A report belongs to the device's holder.

    The rules are the same as in the fold. The newest snapshot that names a device says who holds the device, from that entry on. A
    later report about a time before that entry belongs to nobody. The first snapshot of a device counts from the log's start on.
    """

    def __init__(self, clock: MeshClock) -> None:
        self._clock = clock
        self._now_ms = 0
        self._versions: dict[str, int] = {}
        self._held: dict[str, list[_HoldingPeriod]] = {}
        """Periods by device, in the order of the log."""

    def see_case(self, message: pull.Delivered, case: log_pb2.CaseSnapshot) -> None:
        """Reads the next case snapshot of any wearer, in the order of the log."""
        self._now_ms = max(self._now_ms, self._clock.to_mesh_ms(message.stamp_ms))
        if case.version <= self._versions.get(case.case_id, -1):
            return  # the same snapshot is logged every day, and may be sent twice
        self._versions[case.case_id] = case.version
        if 0 < case.valid_until_ms <= self._now_ms:
            return
        for device_id in case.tag_device_ids:
            self._note(device_id, Holder(HolderKind.WEARER, case.wearer_id), message.sequence)
        for person in case.persons:
            for device_id in person.device_ids:
                self._note(device_id, Holder(HolderKind.PERSON, person.person_id), message.sequence)

    def _note(self, device_id: str, holder: Holder, sequence: int) -> None:
        held = self._held.setdefault(device_id, [])
        if not held:
            held.append(_HoldingPeriod(0, 0, holder))
        elif held[-1].holder != holder:
            held.append(_HoldingPeriod(sequence, self._now_ms, holder))

    def was_held_by(
        self, holders: Collection[Holder], device_id: str, sequence: int, *, time_ms: int | None = None
    ) -> bool:
        """Whether one of `holders` held a device at a sequence, and if `time_ms` (mesh time) is given, already at that time.

        A device that no snapshot names counts as held.
        """
        held = self._held.get(device_id)
        if held is None:
            return True
        period = held[bisect_right(held, sequence, key=lambda period: period.first) - 1]
        return period.holder in holders and (time_ms is None or time_ms >= period.since_ms)


class RedactedLog:
    """Log entries about one wearer, redacted for one agency."""

    def __init__(self, wearer_id: str, decided: Collection[int], *, may_locate_person: bool, holders: Holders) -> None:
        """`may_locate_person` says whether the agency may know where the protected persons are: only the police may."""
        self.records: list[StoredMessage] = []
        self.person_ids: set[str] = set()
        self.device_ids: set[str] = set()
        """Devices of the wearer and, for the police, of the persons protected from the wearer."""
        self.wearer_id = wearer_id
        self.decided = decided
        """Sequences of the entries that caused an alert about this wearer. They may concern other people."""
        self._may_locate_person = may_locate_person
        self._holders = holders
        self._mine = {Holder(HolderKind.WEARER, wearer_id)}
        """The holders whose reports this agency may have."""
        self._stamp_ms = 0
        """Greatest time stamp of the records, wall clock, milliseconds since 1970 UTC."""
        self._last = 0
        """Sequence of the last included entry inside the window."""

    def see_case(self, case: log_pb2.CaseSnapshot) -> None:
        """Adds the devices and persons of a case.

        All cases must be added before the reports: a report may precede the snapshot that names its device.
        """
        self.person_ids.update(person.person_id for person in case.persons)
        self.device_ids.update(case.tag_device_ids)
        if self._may_locate_person:
            self.device_ids.update(id_ for person in case.persons for id_ in person.device_ids)
            self._mine.update(Holder(HolderKind.PERSON, person.person_id) for person in case.persons)

    def add_premise(self, message: pull.Delivered) -> None:
        """Adds an entry from before the window, as a part of the prior state."""
        self._add(message, self._redacted(message, entry_of(message.data)), premise=True)

    def add(self, message: pull.Delivered, entry: log_pb2.LogEntry, left_out: Peaks) -> None:
        """Adds the part of an entry that concerns the wearer.

        `left_out` holds all entries from the start of the window or from earlier on.
        """
        kept = self._redacted(message, entry)
        if kept is None and message.sequence not in self.decided:
            return
        # The fold's clock never runs backwards. So an omitted entry with a later time stamp has set the clock.
        ahead = left_out.after(self._last)
        if ahead and ahead.stamp_ms > max(self._stamp_ms, message.stamp_ms):
            self.records.append(_marked(record_of(ahead)))
            self._stamp_ms = ahead.stamp_ms
        self._add(message, kept)
        self._last = message.sequence

    def begin(self, sequence: int) -> None:
        """Starts the window at the entry with this sequence."""
        self._last = sequence - 1

    def _add(self, message: pull.Delivered, kept: bytes | None, premise: bool = False) -> None:
        record = record_of(message, premise)
        self.records.append(_marked(record) if kept is None else replace(record, data=kept, cut=kept != record.data))
        self._stamp_ms = max(self._stamp_ms, record.stamp_ms)

    def _redacted(self, message: pull.Delivered, entry: log_pb2.LogEntry) -> bytes | None:
        match entry.WhichOneof("body"):
            case "positions" | "heard" | "presences" as body:
                return self._rows(message, entry, body)
            case "equipment":
                return message.data if self._is_mine(entry.equipment.device_id, message.sequence) else None
            case "case":
                return self._case(message.data, entry) if entry.case.wearer_id == self.wearer_id else None
            case "rules" | "fold_version":
                return message.data
        return None

    def _is_mine(self, device_id: str, sequence: int, time_ms: int | None = None) -> bool:
        return device_id in self.device_ids and self._holders.was_held_by(
            self._mine, device_id, sequence, time_ms=time_ms
        )

    def _rows(self, message: pull.Delivered, entry: log_pb2.LogEntry, body: str) -> bytes | None:
        batch: Any = getattr(entry, body)
        times_ms: Sequence[int] = getattr(batch, _TIMES[body]) if body in _TIMES else ()
        rows_of = zip_longest(batch.device_id, times_ms)
        mine = [i for i, (id_, time_ms) in enumerate(rows_of) if self._is_mine(id_, message.sequence, time_ms)]
        if not mine:
            return None
        count = len(batch.device_id)
        if len(mine) == count:
            return message.data
        kept = log_pb2.LogEntry()
        rows: Any = getattr(kept, body)
        for descriptor, value in batch.ListFields():
            if not descriptor.is_repeated:
                setattr(rows, descriptor.name, value)
            elif len(value) != count:
                return None  # the fold makes the whole batch a dead letter
            else:
                getattr(rows, descriptor.name).extend(value[i] for i in mine)
        return kept.SerializeToString(deterministic=True)

    def _case(self, data: bytes, entry: log_pb2.LogEntry) -> bytes:
        if self._may_locate_person:
            return data
        # Probation visits only the wearer, so it gets the rings but nothing that leads to the protected persons.
        kept = log_pb2.LogEntry()
        kept.CopyFrom(entry)
        kept.case.ClearField("places")
        kept.case.ClearField("encounters")
        for person in kept.case.persons:
            person.ClearField("device_ids")
            person.ClearField("sealed_contact")
            person.ClearField("presence_units")
        return kept.SerializeToString(deterministic=True)


_TIMES = {"positions": "fix_time_ms", "presences": "seen_ms"}
"""Column with the time of each row, by the kind of the entry."""


@dataclass(frozen=True, slots=True)
class Window:
    """A redacted log with the range of entries that it covers."""

    first: int
    last: int
    share: RedactedLog


class Shares:
    """Fills the redacted logs of several windows in one pass through the log. The holders of all devices must be known before."""

    def __init__(self, windows: Iterable[Window]) -> None:
        self._windows = list(windows)
        self._left_out = Peaks()
        self._of_wearer: dict[str, list[Window]] = {}
        self._of_device: dict[str, list[Window]] = {}
        self._of_entry: dict[int, list[Window]] = {}
        for window in self._windows:
            window.share.begin(window.first)
            self._of_wearer.setdefault(window.share.wearer_id, []).append(window)
            for device_id in window.share.device_ids:
                self._of_device.setdefault(device_id, []).append(window)
            for sequence in window.share.decided:
                self._of_entry.setdefault(sequence, []).append(window)

    def consume(self, message: pull.Delivered) -> None:
        """Reads the next entry of the log."""
        entry = entry_of(message.data)
        for window in dict.fromkeys((*self._about(entry), *self._of_entry.get(message.sequence, ()))):
            if window.first <= message.sequence <= window.last:
                window.share.add(message, entry, self._left_out)
        self._left_out.add(message)

    def _about(self, entry: log_pb2.LogEntry) -> Iterable[Window]:
        match entry.WhichOneof("body"):
            case "positions":
                return self._with(entry.positions.device_id)
            case "heard":
                return self._with(entry.heard.device_id)
            case "presences":
                return self._with(entry.presences.device_id)
            case "equipment":
                return self._with([entry.equipment.device_id])
            case "case":
                return self._of_wearer.get(entry.case.wearer_id, ())
            case "rules" | "fold_version":
                return self._windows
        return ()

    def _with(self, device_ids: Iterable[str]) -> Iterable[Window]:
        if self._of_device.keys().isdisjoint(device_ids):
            return ()
        return [window for id_ in device_ids for window in self._of_device.get(id_, ())]


def _marked(record: StoredMessage) -> StoredMessage:
    return replace(record, subject=MARK_SUBJECT, data=b"", cut=True)
