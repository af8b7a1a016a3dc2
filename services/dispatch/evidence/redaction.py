"""One wearer's share of the log, for one agency: what of each entry it may have.

An entry that is about others too is cut to the wearer's own devices, and one that is about others only is left out, but for its
stamp where that made time pass. Of what was cut no hash is kept: it could be tried out against guesses of where somebody was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from services.common.clock import MeshClock
from services.common.messaging import pull, stored
from services.common.rpc.errors import InvalidField
from services.dispatch.evidence.model import MARK_SUBJECT, StoredMessage
from tandem.common.v1 import log_pb2


def entry_of(data: bytes) -> log_pb2.LogEntry:
    """An entry of the log; an empty one where it can't be read: the fold has parked it, and it is about nobody."""
    try:
        return stored.entry(data)
    except InvalidField:
        return log_pb2.LogEntry()


def record_of(message: pull.Delivered, premise: bool = False) -> StoredMessage:
    """A message as it is stored."""
    return StoredMessage(
        message.stream, message.sequence, message.stamp_ms, message.subject, message.data, premise=premise
    )


class Peaks:
    """The greatest stamp among the newest entries: what was left out may still have made time pass."""

    def __init__(self) -> None:
        self._falling: list[pull.Delivered] = []
        """Each with a smaller stamp than those before it, or the same."""

    def add(self, message: pull.Delivered) -> None:
        """The next entry."""
        while self._falling and self._falling[-1].stamp_ms < message.stamp_ms:
            self._falling.pop()
        self._falling.append(message)

    def after(self, sequence: int) -> pull.Delivered | None:
        """The first entry with the greatest stamp of those behind a sequence; None where there are none."""
        at = bisect_right(self._falling, sequence, key=lambda one: one.sequence)
        return self._falling[at] if at < len(self._falling) else None


class Holders:
    """On whom each device was, as all wearers' cases tell: what it reported for somebody else is theirs.

    As the fold has it: a device is on whom the newest snapshot says that names it, from that entry on, and what it reports later of
    a time before is nobody's any more. Before the first snapshot it was on the same.
    """

    def __init__(self, clock: MeshClock) -> None:
        self._clock = clock
        self._now_ms = 0
        self._versions: dict[str, int] = {}
        self._held: dict[str, list[tuple[int, int, str]]] = {}
        """By device, in the log's order: from which entry on, since when by the mesh's clock, and by whom."""

    def see_case(self, message: pull.Delivered, case: log_pb2.CaseSnapshot) -> None:
        """The next snapshot in the log's order, whosever it is."""
        self._now_ms = max(self._now_ms, self._clock.to_mesh_ms(message.stamp_ms))
        if case.version <= self._versions.get(case.case_id, -1):
            return  # the daily one, or sent again
        self._versions[case.case_id] = case.version
        if case.valid_until_ms <= self._now_ms:
            return
        named = [(device_id, wearer(case.wearer_id)) for device_id in case.tag_device_ids]
        named += [(device_id, person(one.person_id)) for one in case.persons for device_id in one.device_ids]
        for device_id, holder in named:
            held = self._held.setdefault(device_id, [])
            if not held:
                held.append((0, 0, holder))
            elif held[-1][2] != holder:
                held.append((message.sequence, self._now_ms, holder))

    def was_on(self, holders: Collection[str], device_id: str, sequence: int, time_ms: int | None = None) -> bool:
        """Whether a device was on one of these at an entry, and since a time if one is given."""
        held = self._held.get(device_id)
        if held is None:
            return True
        _, since_ms, holder = held[bisect_right(held, sequence, key=lambda one: one[0]) - 1]
        return holder in holders and (time_ms is None or time_ms >= since_ms)


def wearer(wearer_id: str) -> str:
    """A wearer as a holder."""
    return f"wearer/{wearer_id}"


def person(person_id: str) -> str:
    """A protected person as a holder."""
    return f"person/{person_id}"


class RedactedLog:
    """The log's entries that are about one wearer, as one agency may have them."""

    def __init__(self, wearer_id: str, leg: str, decided: Collection[int], holders: Holders) -> None:
        self.records: list[StoredMessage] = []
        self.person_ids: set[str] = set()
        self.device_ids: set[str] = set()
        """Whose reports are the wearer's, or of those who are protected from them."""
        self.wearer_id = wearer_id
        self.decided = decided
        """Entries that gave an alert about this wearer, whatever they are about."""
        self._leg = leg
        self._holders = holders
        self._mine = {wearer(wearer_id)}
        """Whose devices' reports these are, among the holders."""
        self._stamp_ms = 0
        """The greatest of what is taken."""
        self._last = 0
        """Sequence of the last entry that was taken and isn't a premise."""

    def see_case(self, case: log_pb2.CaseSnapshot) -> None:
        """Notes whose devices they are: a device's reports may stand before the snapshot that names it."""
        self.person_ids.update(one.person_id for one in case.persons)
        self.device_ids.update(case.tag_device_ids)
        if self._leg == "police":
            self.device_ids.update(id_ for one in case.persons for id_ in one.device_ids)
            self._mine.update(person(one.person_id) for one in case.persons)

    def take_premise(self, message: pull.Delivered) -> None:
        """Takes what stood before the window."""
        self._add(message, self._cut(message, entry_of(message.data)), premise=True)

    def take(self, message: pull.Delivered, entry: log_pb2.LogEntry, left_out: Peaks) -> None:
        """Takes of an entry what is about the wearer. `left_out` has the entries since the window began, or since more."""
        kept = self._cut(message, entry)
        if kept is None and message.sequence not in self.decided:
            return
        # Time doesn't run backwards: what was left out and is ahead of this entry has decided the fold's now.
        ahead = left_out.after(self._last)
        if ahead and ahead.stamp_ms > max(self._stamp_ms, message.stamp_ms):
            self.records.append(_marked(record_of(ahead)))
            self._stamp_ms = ahead.stamp_ms
        self._add(message, kept)
        self._last = message.sequence

    def begin(self, sequence: int) -> None:
        """The window begins at a sequence."""
        self._last = sequence - 1

    def _add(self, message: pull.Delivered, kept: bytes | None, premise: bool = False) -> None:
        record = record_of(message, premise)
        self.records.append(_marked(record) if kept is None else replace(record, data=kept, cut=kept != record.data))
        self._stamp_ms = max(self._stamp_ms, record.stamp_ms)

    def _cut(self, message: pull.Delivered, entry: log_pb2.LogEntry) -> bytes | None:
        match entry.WhichOneof("body"):
            case "positions" | "heard" as body:
                return self._rows(message, entry, body)
            case "equipment":
                return message.data if self._is_mine(entry.equipment.device_id, message.sequence) else None
            case "case":
                return self._case(message.data, entry) if entry.case.wearer_id == self.wearer_id else None
            case "rules" | "fold_version":
                return message.data
        return None

    def _is_mine(self, device_id: str, sequence: int, time_ms: int | None = None) -> bool:
        return device_id in self.device_ids and self._holders.was_on(self._mine, device_id, sequence, time_ms)

    def _rows(self, message: pull.Delivered, entry: log_pb2.LogEntry, body: str) -> bytes | None:
        batch: Any = getattr(entry, body)
        times_ms = batch.fix_time_ms if body == "positions" else ()
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
                return None  # the fold sets it aside as a whole
            else:
                getattr(rows, descriptor.name).extend(value[i] for i in mine)
        return kept.SerializeToString(deterministic=True)

    def _case(self, data: bytes, entry: log_pb2.LogEntry) -> bytes:
        if self._leg == "police":
            return data
        # Probation goes to the wearer: it gets rings, and no way to where the protected persons are.
        kept = log_pb2.LogEntry()
        kept.CopyFrom(entry)
        kept.case.ClearField("places")
        kept.case.ClearField("encounters")
        for one in kept.case.persons:
            one.ClearField("device_ids")
            one.ClearField("sealed_contact")
        return kept.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class Window:
    """A share, and which entries it is taken from."""

    first: int
    last: int
    share: RedactedLog


class Shares:
    """Shares of several wearers, taken in one pass through the log once it is known whose devices are whose."""

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

    def take(self, message: pull.Delivered) -> None:
        """The next entry, in the log's order."""
        entry = entry_of(message.data)
        for one in {id(one): one for one in (*self._about(entry), *self._of_entry.get(message.sequence, ()))}.values():
            if one.first <= message.sequence <= one.last:
                one.share.take(message, entry, self._left_out)
        self._left_out.add(message)

    def _about(self, entry: log_pb2.LogEntry) -> Iterable[Window]:
        match entry.WhichOneof("body"):
            case "positions":
                return self._with(entry.positions.device_id)
            case "heard":
                return self._with(entry.heard.device_id)
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
        return [one for id_ in device_ids for one in self._of_device.get(id_, ())]


def _marked(record: StoredMessage) -> StoredMessage:
    return replace(record, subject=MARK_SUBJECT, data=b"", cut=True)
