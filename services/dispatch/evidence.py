"""What one incident rests on, as the streams hold it: gathered for one agency, cut to what that agency may have.

Nothing here decides or folds. An entry that is about others too is cut to the incident's own devices, and one that is about others
only is left out, but for its stamp where that made time pass. Of what was cut no hash is kept: it could be tried out against
guesses of where somebody was.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.message import DecodeError

from services.common import flow, pull, times
from services.common.bus import Bus
from services.common.errors import NotFound
from services.common.streams import Premises
from tandem.common.v1 import alert_pb2, log_pb2

LOOK_BACK_MS = 7_200_000
"""What came before the first alert and may have decided it: 2 h, which is as late as a report may be. Mesh time."""
OPENED_BEFORE_MS = 4 * LOOK_BACK_MS
"""How long before an alert of an incident an earlier one is looked for. Mesh time."""
PREMISES_BACK_MS = 26 * 3_600_000
"""Cases and rules are entered again each day of the mesh."""
LEGS = ("probation", "police")
"""Agencies for which evidence is gathered; the warning leg has its chain and nothing that the police's lacks."""
MARK_SUBJECT = "mark"
_YIELD_EVERY = 16


@dataclass(frozen=True, slots=True)
class Record:
    """A message of a stream."""

    stream: str
    sequence: int
    stamp_ms: int
    """When the stream's leader stored it, wall clock, milliseconds since 1970 UTC."""
    subject: str
    """MARK_SUBJECT where all of its content is left out: only its stamp counts."""
    data: bytes
    """As stored, or what is left of it."""
    cut: bool = False
    """A part of it is left out."""
    premise: bool = False
    """It stood before the window; the fold takes it as the window begins."""

    @property
    def sha256(self) -> str:
        """Hash of the stored bytes; empty where they were cut."""
        return "" if self.cut else hashlib.sha256(self.data).hexdigest()

    def to_line(self) -> bytes:
        """One line of JSON with sorted keys."""
        told = {**asdict(self), "data": base64.b64encode(self.data).decode(), "sha256": self.sha256}
        return json.dumps(told, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def of_line(line: bytes) -> Record:
    """The record of `Record.to_line`. Raises ValueError, KeyError or TypeError where it is none."""
    told = json.loads(line)
    stated = told.pop("sha256")
    record = Record(**{**told, "data": base64.b64decode(told["data"], validate=True)})
    if record.sha256 != stated:
        raise ValueError("its data doesn't have its sha256")
    return record


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was gathered of one incident."""

    incident_id: str
    leg: str
    """For which agency."""
    wearer_id: str
    order_ids: tuple[str, ...]
    person_ids: tuple[str, ...]
    """Protected persons of the cases."""
    partition: int
    window_stamp_ms: int
    """Stamp from which on entries are enclosed, wall clock."""
    whole: bool
    """The log still held all of the window."""
    ended: bool
    """The alert that ends the incident is among them."""
    records: tuple[Record, ...] = field(repr=False)
    """By stream and sequence."""

    def of(self, stream: str) -> list[Record]:
        """The records of one stream, in its order."""
        return [one for one in self.records if one.stream == stream]

    def to_bytes(self) -> bytes:
        """As it is kept: a line that says what it is, then a line for each record."""
        head = {name: value for name, value in asdict(replace(self, records=())).items() if name != "records"}
        lines = [json.dumps(head, sort_keys=True, separators=(",", ":")).encode() + b"\n"]
        return b"".join(lines + [one.to_line() for one in self.records])


def of_bytes(data: bytes) -> Evidence:
    """The evidence of `Evidence.to_bytes`. Raises ValueError, KeyError or TypeError where it is none."""
    head, *lines = data.splitlines()
    told = json.loads(head)
    told |= {"order_ids": tuple(told["order_ids"]), "person_ids": tuple(told["person_ids"])}
    return Evidence(**told, records=tuple(of_line(line) for line in lines))


def joined(kept: Sequence[Evidence]) -> Evidence:
    """Evidence of one incident that was gathered at several times, the earliest first, as one."""
    first, last = kept[0], kept[-1]
    if len(kept) == 1:
        return first
    records = {(one.stream, one.sequence): one for one in last.records if not one.premise}
    for earlier in reversed(kept[:-1]):
        records |= {(one.stream, one.sequence): one for one in earlier.records}
    return replace(
        last,
        order_ids=tuple(sorted({*first.order_ids, *last.order_ids})),
        person_ids=tuple(sorted({*first.person_ids, *last.person_ids})),
        window_stamp_ms=first.window_stamp_ms,
        whole=first.whole,
        records=tuple(records[key] for key in sorted(records)),
    )


async def gather(
    bus: Bus, premises: Premises, alert_ids: Iterable[str], leg: str, back_ms: int | None = LOOK_BACK_MS
) -> Evidence:
    """What the streams hold of the incident to which these alerts belong, as far as it has come.

    `back_ms` is how far before its first alert, mesh time; None means from the log's start.
    Raises NotFound where ALERTS holds none of the alerts, Unavailable where the server doesn't answer.
    """
    alerts = [found for id_ in alert_ids if (found := await _stored_alert(bus, premises, id_))]
    if not alerts:
        raise NotFound(f"{flow.ALERTS.name} holds none of the incident's alerts")
    opening, told = await _opening(bus, premises, min(alerts, key=lambda one: one.sequence))
    stream = flow.log_stream(opening.partition)
    bounds = await bus.bounds_of(stream)
    opened = await _message(bus, stream, seq=opening.sequence)
    from_wall_ms = 0
    if opened and back_ms is not None:
        from_wall_ms = opened.stamp_ms - back_ms // premises.clock.rate
    first = await first_at(bus, stream, from_wall_ms)
    ended = any(one.incident_ends for one, _ in told if one.incident_id == opening.incident_id)
    last = min(max(one.sequence for one, _ in told), bounds.last) if ended else bounds.last
    log = _Log(opening, leg, {one.sequence for one, _ in told if one.wearer_id == opening.wearer_id})
    if first > bounds.first:
        daily_ms = from_wall_ms - PREMISES_BACK_MS // premises.clock.rate
        await _read_premises(bus, opening.partition, first, daily_ms, log)
    async for message in _between(bus, stream, first, last, flow.log_subject(opening.partition, "case")):
        log.see_case(message)
    async for message in _between(bus, stream, first, last):
        log.take(message)
    records = [*log.records, *await _parked(bus, stream, from_wall_ms, {one.sequence for one in log.records})]
    for alert, record in told:
        if alert.incident_id == opening.incident_id and (shown := _alert_for(leg, alert, record)):
            records.append(shown)
            if leg == "police" and (figures := await _figures(bus, alert)):
                records.append(figures)
    return Evidence(
        incident_id=opening.incident_id,
        leg=leg,
        wearer_id=opening.wearer_id,
        order_ids=tuple(sorted({one.order_id for one, _ in told if one.incident_id == opening.incident_id})),
        person_ids=tuple(sorted(log.person_ids)),
        partition=opening.partition,
        window_stamp_ms=from_wall_ms,
        # Where its first entry is younger than the window, the log either began then or has lost what was before.
        whole=bounds.first == 1 or (opened is not None and first > bounds.first),
        ended=ended,
        records=tuple(sorted(records, key=lambda one: (one.stream, one.sequence))),
    )


class _Log:
    """The log's entries that are about one wearer."""

    def __init__(self, opening: alert_pb2.Alert, leg: str, decided: Collection[int]) -> None:
        self.records: list[Record] = []
        self.person_ids: set[str] = set()
        self._wearer_id, self._leg = opening.wearer_id, leg
        self._decided = decided
        """Entries that gave an alert about this wearer, whatever they are about."""
        self._device_ids: set[str] = set()
        self._stamp_ms = 0
        """The greatest of what is taken."""
        self._ahead: Record | None = None
        """What was left out since and has a greater one: time doesn't run backwards behind it."""

    def see_case(self, message: pull.Delivered) -> None:
        """Notes whose devices they are: a device's reports may stand before the snapshot that names it."""
        case = _entry(message.data).case if message.subject.endswith(".case") else None
        if case and case.wearer_id == self._wearer_id:
            self.person_ids.update(person.person_id for person in case.persons)
            self._device_ids.update(case.tag_device_ids)
            if self._leg == "police":
                self._device_ids.update(id_ for person in case.persons for id_ in person.device_ids)

    def take(self, message: pull.Delivered, premise: bool = False) -> None:
        """Takes of an entry what is about the wearer."""
        kept = self._cut(message)
        record = _record(message, premise)
        if kept is None and message.sequence not in self._decided:
            if message.stamp_ms > max(self._stamp_ms, self._ahead.stamp_ms if self._ahead else 0):
                self._ahead = record
            return
        if self._ahead and not premise and self._ahead.stamp_ms > message.stamp_ms:
            self._add(_marked(self._ahead))
        self._ahead = None
        self._add(_marked(record) if kept is None else replace(record, data=kept, cut=kept != record.data))

    def _add(self, record: Record) -> None:
        self.records.append(record)
        self._stamp_ms = max(self._stamp_ms, record.stamp_ms)

    def _cut(self, message: pull.Delivered) -> bytes | None:
        entry = _entry(message.data)
        match entry.WhichOneof("body"):
            case "positions":
                return self._rows(message.data, entry, entry.positions)
            case "heard":
                return self._rows(message.data, entry, entry.heard)
            case "equipment":
                return message.data if entry.equipment.device_id in self._device_ids else None
            case "case":
                return self._case(message.data, entry) if entry.case.wearer_id == self._wearer_id else None
            case "rules" | "fold_version":
                return message.data
        return None

    def _rows(self, data: bytes, entry: log_pb2.LogEntry, batch: Any) -> bytes | None:
        mine = [i for i, id_ in enumerate(batch.device_id) if id_ in self._device_ids]
        if not mine:
            return None
        count = len(batch.device_id)
        if len(mine) == count:
            return data
        for descriptor, column in batch.ListFields():
            if descriptor.is_repeated:
                if len(column) != count:
                    return None  # the fold sets it aside as a whole
                left = [column[i] for i in mine]
                batch.ClearField(descriptor.name)
                getattr(batch, descriptor.name).extend(left)
        return entry.SerializeToString(deterministic=True)

    def _case(self, data: bytes, entry: log_pb2.LogEntry) -> bytes:
        if self._leg == "police":
            return data
        # Probation goes to the wearer: it gets rings, and no way to where the protected persons are.
        entry.case.ClearField("places")
        entry.case.ClearField("encounters")
        for person in entry.case.persons:
            person.ClearField("device_ids")
            person.ClearField("sealed_contact")
        return entry.SerializeToString(deterministic=True)


# ── the streams ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def first_at(bus: Bus, stream: str, wall_ms: int) -> int:
    """The first sequence of a stream whose stamp is at least this; one behind its last where there is none."""
    bounds = await bus.bounds_of(stream)
    low, high = bounds.first, bounds.last + 1
    while low < high and wall_ms:
        middle = (low + high) // 2
        message = await _message(bus, stream, seq=middle)
        if message is None or message.stamp_ms < wall_ms:
            low = middle + 1
        else:
            high = middle
    return low


async def _read_premises(bus: Bus, partition: int, before: int, from_wall_ms: int, log: _Log) -> None:
    """The newest snapshot of each of the wearer's cases, the rules and the fold's version, as they stood before a sequence."""
    newest: dict[str, pull.Delivered] = {}
    stream = flow.log_stream(partition)
    for kind in ("case", "rules", "fold"):
        first = await first_at(bus, stream, from_wall_ms) if kind != "fold" else 1
        async for message in _between(bus, stream, first, before - 1, flow.log_subject(partition, kind)):
            entry = _entry(message.data)
            newest[entry.case.case_id if kind == "case" else kind] = message
    for message in sorted(newest.values(), key=lambda one: one.sequence):
        log.see_case(message)
    for message in sorted(newest.values(), key=lambda one: one.sequence):
        log.take(message, premise=True)


async def _opening(
    bus: Bus, premises: Premises, known: alert_pb2.Alert
) -> tuple[alert_pb2.Alert, list[tuple[alert_pb2.Alert, pull.Delivered]]]:
    """The first alert of the incident to which one belongs, and all about the wearer from well before it.

    What only warns may have opened it long before a desk was told, and isn't known to the leg.
    """
    while True:
        decided_ms = times.from_timestamp(known.decided_at)
        wall_ms = premises.clock.anchor_ms + (decided_ms - premises.clock.anchor_ms) // premises.clock.rate
        told = await _alerts(bus, known, max(wall_ms - OPENED_BEFORE_MS // premises.clock.rate, 0))
        first = min((one for one, _ in told if one.incident_id == known.incident_id), key=lambda one: one.sequence)
        if first.sequence == known.sequence:
            return first, told
        known = first


async def _alerts(
    bus: Bus, opening: alert_pb2.Alert, from_wall_ms: int
) -> list[tuple[alert_pb2.Alert, pull.Delivered]]:
    """Alerts about the wearer from a moment until the incident's end, or until now."""
    stream, found = flow.ALERTS.name, []
    first, last = await first_at(bus, stream, from_wall_ms), (await bus.bounds_of(stream)).last
    async for message in _between(bus, stream, first, last):
        try:
            alert = alert_pb2.Alert.FromString(message.data)
        except DecodeError:
            continue  # the legs have parked it; it names no incident
        if (alert.wearer_id, alert.partition) == (opening.wearer_id, opening.partition):
            found.append((alert, message))
            if alert.incident_ends and alert.incident_id == opening.incident_id:
                break
    return found


def _alert_for(leg: str, alert: alert_pb2.Alert, message: pull.Delivered) -> Record | None:
    record = _record(message)
    if leg == "police":
        return record
    if not alert.incident_ends and all(one.leg != alert_pb2.PROBATION for one in alert.destinations):
        return None  # what a protective device says is the police's alone
    if not alert.HasField("cause") or alert.cause.of_wearer:
        return record
    alert.ClearField("cause")
    return replace(record, data=alert.SerializeToString(deterministic=True), cut=True)


async def _figures(bus: Bus, alert: alert_pb2.Alert) -> Record | None:
    subject = flow.measure_subject(alert.partition, alert.alert_id)
    return await _message(bus, flow.MEASURES.name, last_by_subj=subject)


async def _stored_alert(bus: Bus, premises: Premises, alert_id: str) -> alert_pb2.Alert | None:
    for partition in range(premises.partitions):
        data = await bus.last_of(flow.ALERTS.name, flow.alert_subject(partition, alert_id))
        if data is not None:
            return alert_pb2.Alert.FromString(data)
    return None


async def _parked(bus: Bus, log: str, from_wall_ms: int, sequences: Collection[int]) -> list[Record]:
    stream, found = flow.PARKED.name, []
    first, last = await first_at(bus, stream, from_wall_ms), (await bus.bounds_of(stream)).last
    async for message in _between(bus, stream, first, last):
        parked = alert_pb2.Parked.FromString(message.data)
        if parked.stream == log and parked.sequence in sequences:
            found.append(_record(message))
    return found


async def _between(
    bus: Bus, stream: str, first: int, last: int, subject: str | None = None
) -> AsyncIterator[pull.Delivered]:
    """Messages from `first` to `last`, of one subject or of all; ends although nothing comes any more."""
    if subject is not None:
        newest = await _message(bus, stream, last_by_subj=subject)
        last = min(last, newest.sequence if newest else 0)
    if first > last:
        return
    count = 0
    async for messages in pull.read(bus, stream, first, (subject,) if subject else ()):
        for message in messages:
            if message.sequence <= last:
                yield message
            count += 1
            if count % _YIELD_EVERY == 0:
                await asyncio.sleep(0)  # whoever shares this loop has offers to make
        if messages[-1].sequence >= last:
            return


async def _message(bus: Bus, stream: str, **which: str | int) -> Record | None:
    """One message, by `seq` or `last_by_subj`; None where there is none (any more). Raises Unavailable."""
    try:
        told = (await bus.api(f"STREAM.MSG.GET.{stream}", which))["message"]
    except NotFound:
        return None
    stamp = datetime.fromisoformat(told["time"])
    stamp_ms = (stamp - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return Record(stream, told["seq"], stamp_ms, told["subject"], base64.b64decode(told.get("data", "")))


def _record(message: pull.Delivered, premise: bool = False) -> Record:
    return Record(message.stream, message.sequence, message.stamp_ms, message.subject, message.data, premise=premise)


def _marked(record: Record) -> Record:
    return replace(record, subject=MARK_SUBJECT, data=b"", cut=True)


def _entry(data: bytes) -> log_pb2.LogEntry:
    try:
        return log_pb2.LogEntry.FromString(data)
    except DecodeError:
        return log_pb2.LogEntry()  # the fold has parked it; it is about nobody
