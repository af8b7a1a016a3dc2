"""One stored log folded whole and split into partitions: whether both decide the same.

The stored log has one partition. It is split as ingest and the registry would have published it: a case goes to its wearer's partition,
and a report to the partition of each wearer whose cases name the device. Rules, versions of the fold and ticks go to all. A partition
gets a tick in place of an entry that it has no part in, so that time passes alike in all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from services.common.ids import partition_of
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, ContactRequest, SensingRequest
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from tandem.common.v1 import log_pb2, presence_pb2

IDS = ("alert_id", "episode_id", "incident_id")
"""Ids, which are hashes of the partition and of the causing entry's sequence."""
_OTHER_IDS = ("amends", "outage_id", "sequence", "ordinal")
"""Further fields of an alert that follow from ids, from sequences, or from the alerts of other cases that share its entry."""


class StoredEntry(NamedTuple):
    """An entry of the log."""

    stamp_ms: int
    entry: log_pb2.LogEntry


@dataclass(frozen=True, slots=True)
class Comparison:
    """Alerts of a log folded whole and split."""

    alerts: int
    """Number of alerts of the whole log."""
    only_whole: list[str]
    """Alerts that only the whole log has, but for partition and ids."""
    only_split: list[str]
    torn: list[str]
    """Ids of the whole log whose alerts have several ids in the split one, or the other way round."""

    @property
    def same(self) -> bool:
        """Whether both have the same alerts but for partition and ids."""
        return not (self.only_whole or self.only_split or self.torn)


async def read(bus: Bus) -> list[StoredEntry]:
    """The log of a mesh with one partition, from its start."""
    last = (await bus.bounds_of(flow.log_stream(0))).last
    entries: list[StoredEntry] = []
    async for messages in pull.read(bus, flow.log_stream(0), 1):
        entries += [
            StoredEntry(message.stamp_ms, log_pb2.LogEntry.FromString(message.data))
            for message in messages
            if message.sequence <= last
        ]
        if messages[-1].sequence >= last:
            break
    return entries


async def empty_state(bus: Bus) -> State:
    """The state from which a mesh's log is folded."""
    meta = await streams.read_log_meta(bus)
    return State(0, meta.log_id, clock_rate=meta.clock.rate, clock_anchor_ms=meta.clock.anchor_ms)


def split(entries: Sequence[StoredEntry], partitions: int) -> list[list[StoredEntry]]:
    """The entries of each partition, with the stamps of the stored log."""
    routes = _routes(entries, partitions)
    split_entries: list[list[StoredEntry]] = [[] for _ in range(partitions)]
    for stamp_ms, entry in entries:
        parts = _parts(entry, routes, partitions)
        for partition, into in enumerate(split_entries):
            into.append(StoredEntry(stamp_ms, parts.get(partition) or log_pb2.LogEntry(tick=log_pb2.Tick())))
    return split_entries


def folded(entries: Iterable[StoredEntry], state: State) -> list[Alert]:
    """Alerts of the offline fold of these entries. Raises ValueError if the fold sets an entry aside."""
    alerts = []
    for sequence, (stamp_ms, entry) in enumerate(entries, start=1):
        for output in fold.step(state, Entry(sequence, stamp_ms, translate.entry_body(entry.SerializeToString()))):
            match output:
                case Alert():
                    alerts.append(output)
                case SensingRequest() | ContactRequest():
                    pass  # its moment is drawn by the log's id, the sequence and the partition
                case _:
                    raise ValueError(f"entry {sequence} was set aside: {output.reason}")
    return alerts


def compare(whole: Sequence[Alert], parts: Iterable[Sequence[Alert]]) -> Comparison:
    """Compares the alerts of the whole log with those of all partitions."""
    whole_by_key = _by_key(whole)
    split_by_key = _by_key([alert for alerts in parts for alert in alerts])
    torn: list[str] = []
    for name in IDS:
        there: dict[str, str] = {}
        back: dict[str, str] = {}
        for key, alerts in whole_by_key.items():
            for of_whole, of_split in zip(alerts, split_by_key.get(key, []), strict=False):
                old, new = getattr(of_whole, name), getattr(of_split, name)
                if there.setdefault(old, new) != new or back.setdefault(new, old) != old:
                    torn.append(f"{name} {old}")
    return Comparison(
        alerts=len(whole),
        only_whole=_lacking(whole_by_key, split_by_key),
        only_split=_lacking(split_by_key, whole_by_key),
        torn=torn,
    )


def _routes(entries: Iterable[StoredEntry], partitions: int) -> Mapping[str, frozenset[int]]:
    routes: defaultdict[str, set[int]] = defaultdict(set)
    for _, entry in entries:
        if entry.WhichOneof("body") == "case":
            partition = partition_of(entry.case.wearer_id, partitions)
            for device_id in entry.case.tag_device_ids:
                routes[device_id].add(partition)
            for person in entry.case.persons:
                for device_id in person.device_ids:
                    routes[device_id].add(partition)
    return {device_id: frozenset(found) for device_id, found in routes.items()}


def _parts(
    entry: log_pb2.LogEntry, routes: Mapping[str, frozenset[int]], partitions: int
) -> Mapping[int, log_pb2.LogEntry]:
    """The part of an entry that goes to each partition. Devices that no case names are in the first one."""
    nobody = frozenset({0})
    match entry.WhichOneof("body"):
        case "case":
            return {partition_of(entry.case.wearer_id, partitions): entry}
        case "equipment":
            return dict.fromkeys(routes.get(entry.equipment.device_id, nobody), entry)
        case "positions":
            return _columns(entry.positions, "positions", routes)
        case "heard":
            return _columns(entry.heard, "heard", routes)
        case "presences":
            return _columns(entry.presences, "presences", routes)
        case _:
            return dict.fromkeys(range(partitions), entry)


def _columns(
    batch: log_pb2.PositionBatch | log_pb2.HeardBatch | presence_pb2.PresenceBatch,
    body: str,
    routes: Mapping[str, frozenset[int]],
) -> Mapping[int, log_pb2.LogEntry]:
    """The rows of a batch that go to each partition, in their order."""
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for row, device_id in enumerate(batch.device_id):
        for partition in routes.get(device_id, {0}):
            rows[partition].append(row)
    parts = {}
    for partition, chosen in rows.items():
        part: Any = type(batch)()
        for field, value in batch.ListFields():
            if field.is_repeated:
                getattr(part, field.name).extend(value[row] for row in chosen)
            else:
                setattr(part, field.name, value)
        parts[partition] = log_pb2.LogEntry(**{body: part})
    return parts


def _by_key(alerts: Iterable[Alert]) -> dict[str, list[Alert]]:
    by_key: defaultdict[str, list[Alert]] = defaultdict(list)
    for alert in alerts:
        content = asdict(alert)
        for name in (*IDS, *_OTHER_IDS):
            del content[name]
        if content["contact"]:
            del content["contact"]["contact_id"]
        by_key[repr(content)].append(alert)
    return by_key


def _lacking(have: Mapping[str, Sequence[Alert]], lack: Mapping[str, Sequence[Alert]]) -> list[str]:
    return list(_lacked(have, lack))


def _lacked(have: Mapping[str, Sequence[Alert]], lack: Mapping[str, Sequence[Alert]]) -> Iterator[str]:
    for key, alerts in have.items():
        for _ in range(len(alerts) - len(lack.get(key, []))):
            yield key
