"""Readers that read on request: commands, the desks' evidence, the runbook for the person on call, and every user's log metadata."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence

from services.cli.commands import evidence as export
from services.cli.commands import refused
from services.client.mesh import MeshConnection, NatsServer
from services.common.clock import MeshClock
from services.common.errors import NotFound
from services.common.evidence import collector
from services.common.failure import CommandFailed
from services.common.messaging import flow, pull, streams
from services.court.explain import refold
from tandem.common.v1 import alert_pb2
from tests.support.geofence import log
from tests.support.ingest.ingest import now_ms
from tests.support.stream_readers.alerts import LOG_ROWS, alert_id, alert_messages
from tests.support.stream_readers.mesh import PARTITIONS, SECRET, Connection
from tests.support.stream_readers.of_registry import step_message
from tests.support.stream_readers.reader import Message, Reader

ALERT = "alert.{p}.{alert_id}"
MEASURE = "measure.{p}.{alert_id}"
SENSING = "sensing.{p}.{request_id}"
DEAD_LETTERS = "dead_letter.{by}.{reader}.{stream}.{sequence}"


def _mesh(connection: Connection) -> MeshConnection:
    """Connection to the mesh as commands use it."""
    server = connection.mesh.nats.bus_as.__self__  # type: ignore[attr-defined]  # a method of the server's configuration
    assert isinstance(server, NatsServer)
    return MeshConnection({}, {}, SECRET, MeshClock(), server, PARTITIONS, None, "")


# ── an alert that the fold made ──────────────────────────────────────────────────────────────────────────────────────


async def _approach(connection: Connection, name: str) -> Sequence[Message]:
    """A case whose wearer approaches from 3 km to 50 m in ten reports."""
    start_ms = now_ms() - 100_000
    entries = [log.case_entry(name, from_ms=start_ms - 1000)]
    for i in range(10):
        at_ms = start_ms + i * 10_000
        entries.append(
            log.positions_entry(log.position(f"d{name}", at_ms, 0), log.position(f"t{name}", at_ms, 3000 - i * 327))
        )
    return [(log.subject_of(entry), entry.SerializeToString()) for entry in entries]


async def _decided(connection: Connection, name: str) -> str:
    """Id of an alert of the case from `_approach`. Empty until there is one."""
    bounds = await connection.bus.bounds_of(flow.ALERTS.name)
    if bounds.first > bounds.last:
        return ""
    async for message in pull.between(connection.bus, flow.ALERTS.name, bounds.first, last=bounds.last):
        with contextlib.suppress(Exception):  # the stream also has garbage of other readers
            alert = alert_pb2.Alert.FromString(message.data)
            if alert.case_id == f"case-{name}" and await connection.bus.last_of(
                flow.MEASURES.name, flow.measure_subject(0, alert.alert_id)
            ):
                return alert.alert_id
    return ""


async def _is_decided(connection: Connection, name: str) -> int:
    return int(bool(await _decided(connection, name)))


async def _nothing(connection: Connection, name: str) -> Sequence[Message]:
    return ()


async def _explained(connection: Connection, name: str) -> int:
    decided_id = await _decided(connection, name)
    async with connection.mesh.nats.bus_as("explain") as bus:
        stored, log_meta = await refold.find(bus, decided_id)
        shown = await refold.refold(bus, stored, log_meta, progress=lambda done, of: None)
    return int(shown.case is not None)


async def _gathered(connection: Connection, user: str, leg: str, id_: str) -> int:
    async with connection.mesh.nats.bus_as(user) as bus:
        log_meta = await streams.read_log_meta(bus)
        try:
            evidence = await collector.collect(bus, log_meta, [id_], leg=leg, may_locate_person=leg == "police")
        except NotFound:
            return 0
    return sum(record.subject == flow.alert_subject(0, id_) for record in evidence.records)


async def _bundled(connection: Connection, name: str) -> int:
    return await _gathered(connection, "evidence", "police", await _decided(connection, name))


async def _alert(connection: Connection, name: str) -> Sequence[Message]:
    return alert_messages(name)


async def _of_police(connection: Connection, name: str) -> int:
    return await _gathered(connection, "dispatch-police", "police", alert_id(name))


async def _of_probation(connection: Connection, name: str) -> int:
    return await _gathered(connection, "dispatch-probation", "probation", alert_id(name))


# ── steps, dead letters, log metadata ────────────────────────────────────────────────────────────────────────────────


async def _step(connection: Connection, name: str) -> Sequence[Message]:
    return [step_message("police", name)]


async def _exported(connection: Connection, name: str) -> int:
    try:
        return min(len(await export._steps(_mesh(connection), "police", name)), 1)
    except CommandFailed:
        return 0


async def _junk_step_behind(connection: Connection, name: str) -> Sequence[Message]:
    """A step after garbage on the same subject."""
    step = step_message("police", name)
    return [(step[0], b"{}"), step]


async def _dead_letters(connection: Connection, name: str) -> Sequence[Message]:
    sequence = zlib.crc32(name.encode())
    dead_letter = alert_pb2.DeadLetter(
        stream=flow.ALERTS.name, sequence=sequence, by="police-alerts", reason=f"reason {name}"
    )
    return [(flow.dead_letter_subject("police-alerts", flow.ALERTS.name, sequence), dead_letter.SerializeToString())]


async def _misplaced_dead_letters(connection: Connection, name: str) -> Sequence[Message]:
    return [
        (
            f"dead_letter.registry.registry-disclosures.ALERTS.{zlib.crc32(name.encode())}",
            (await _dead_letters(connection, name))[0][1],
        )
    ]


async def _listed_dead_letters(connection: Connection, name: str) -> int:
    """Number of times that `tandem dead-letters` lists the reason of a dead letter."""
    _, listed = await refused._read(_mesh(connection), "", 1_000_000)
    return sum(letter.reason == f"reason {name}" for letter in listed)


async def _same_log_meta(connection: Connection, name: str) -> int:
    async with connection.mesh.nats.bus_as("setup") as bus:
        first = await streams.read_log_meta(bus)
    for user in flow.USERS:
        async with connection.mesh.nats.bus_as(user) as bus:
            if await streams.read_log_meta(bus) != first or first.partitions != PARTITIONS:
                return 0
    return 1


READERS = (
    Reader(
        name="explain",
        rows=tuple((subject, "explain") for subject in (*LOG_ROWS, ALERT, MEASURE, SENSING)),
        prepare=_approach,
        prepared=_is_decided,
        valid=_nothing,
        effects=_explained,
        garbage=("log.0.report", "alert.0.junk-{name}", "measure.0.junk-{name}", "sensing.0.junk-{name}"),
        dead_letter_by="fold",
        at_reuse=False,
    ),
    Reader(
        name="evidence",
        rows=tuple((subject, "evidence") for subject in (*LOG_ROWS, ALERT, MEASURE, DEAD_LETTERS)),
        prepare=_approach,
        prepared=_is_decided,
        valid=_nothing,
        effects=_bundled,
        garbage=("dead_letter.geofence.fold.LOG_0.junk-{name}", "log.0.case", "alert.0.junk-{name}"),
        at_reuse=False,
    ),
    Reader(
        name="police-evidence",
        rows=tuple((subject, "dispatch-police") for subject in (*LOG_ROWS, ALERT, MEASURE, DEAD_LETTERS)),
        valid=_alert,
        effects=_of_police,
        garbage=("dead_letter.geofence.fold.LOG_0.junk-{name}", "log.0.case", "alert.0.junk-{name}"),
        at_reuse=False,
        counts_duplicates=True,
    ),
    Reader(
        name="probation-evidence",
        rows=tuple((subject, "dispatch-probation") for subject in (*LOG_ROWS, ALERT, DEAD_LETTERS)),
        valid=_alert,
        effects=_of_probation,
        garbage=("dead_letter.geofence.fold.LOG_0.junk-{name}", "log.0.case", "alert.0.junk-{name}"),
        at_reuse=False,
        counts_duplicates=True,
    ),
    Reader(
        name="export",
        rows=(("incident.{leg}.{incident_id}", "export"),),
        valid=_junk_step_behind,
        effects=_exported,
        garbage=("incident.police.junk-{name}",),
        at_reuse=False,
    ),
    Reader(
        name="on-call",
        rows=((DEAD_LETTERS, "operator"),),
        valid=_dead_letters,
        effects=_listed_dead_letters,
        misplaced=_misplaced_dead_letters,
        garbage=("dead_letter.geofence.fold.LOG_0.junk-{name}",),
        at_reuse=False,
        counts_duplicates=True,
    ),
    Reader(
        name="log_meta",
        rows=tuple(("log_meta", user) for user in flow.USERS),
        valid=_nothing,
        effects=_same_log_meta,
        garbage=("log_meta",),
        at_reuse=False,
    ),
)
