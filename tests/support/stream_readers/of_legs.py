"""Readers in the legs: alerts, the other legs' steps, their own steps, and the other streams of the warning leg."""

from __future__ import annotations

from collections.abc import Sequence

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, command_pb2, log_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tests.support.stream_readers.alerts import LOG_ROWS, alert_id, alert_messages
from tests.support.stream_readers.mesh import Connection
from tests.support.stream_readers.of_registry import step_message
from tests.support.stream_readers.reader import Message, Reader

ALERT, STEP = "alert.{p}.{alert_id}", "incident.{leg}.{incident_id}"
WARNING = flow.leg_user("warning")
LOST_STEP = 99
"""Number of a step that no leg has in its database."""


async def _alert(connection: Connection, name: str) -> Sequence[Message]:
    return alert_messages(name)


async def _alert_elsewhere(connection: Connection, name: str) -> Sequence[Message]:
    (_, alert), figures = alert_messages(name)
    return [(flow.alert_subject(0, f"{name}-x"), alert), figures]


def readers_of(leg: str) -> tuple[Reader, ...]:
    """Readers that every leg has."""
    user = flow.leg_user(leg)
    other = next(candidate for candidate in flow.LEGS if candidate != leg)

    async def incidents(connection: Connection, name: str) -> int:
        return connection.mesh.count(user, "select count(*) from incidents where incident_id = ?", name)

    async def step(connection: Connection, name: str) -> Sequence[Message]:
        return [step_message(other, name)]

    async def step_elsewhere(connection: Connection, name: str) -> Sequence[Message]:
        return [(flow.incident_subject(other, f"{name}-x"), step_message(other, name)[1])]

    async def peers(connection: Connection, name: str) -> int:
        return connection.mesh.count(user, "select count(*) from peer_assignments where incident_id = ?", name)

    async def own_step(connection: Connection, name: str) -> Sequence[Message]:
        assignment_id = connection.mesh.value(user, "select assignment_id from assignments where incident_id = ?", name)
        return [step_message(leg, name, LOST_STEP, assignment=str(assignment_id))]

    async def lost(connection: Connection, name: str) -> int:
        statement = "select count(*) from events where incident_id = ? and kind = 'StepsLost'"
        return connection.mesh.count(user, statement, name)

    return (
        Reader(
            name=f"{leg}-alerts",
            service=user,
            rows=((ALERT, user),),
            valid=_alert,
            effects=incidents,
            misplaced=_alert_elsewhere,
            garbage=("alert.0.junk-{name}",),
            dead_letter_by=flow.alerts_reader(leg),
        ),
        Reader(
            name=f"{leg}-peers",
            service=user,
            rows=((STEP, user),),
            valid=step,
            effects=peers,
            misplaced=step_elsewhere,
            garbage=(f"incident.{other}.junk-{{name}}",),
            dead_letter_by=flow.peers_reader(leg),
        ),
        Reader(
            name=f"{leg}-own-steps",
            service=user,
            rows=((STEP, user),),
            prepare=_alert,
            prepared=incidents,
            valid=own_step,
            effects=lost,
            garbage=(f"incident.{leg}.junk-{{name}}",),
            dead_letter_by=f"{leg}-steps",
            only_at_start=True,
        ),
    )


# ── the warning leg ──────────────────────────────────────────────────────────────────────────────────────────────────


def _case(name: str) -> Message:
    """A case whose protected person has a device and no sealed contact, with the ids of the alert `name`."""
    person = log_pb2.ProtectedTarget(person_id=f"person-{name}", device_ids=[f"app-{name}"])
    case = log_pb2.CaseSnapshot(
        case_id=f"case-{name}",
        version=1,
        order_id=f"order-{name}",
        wearer_id=f"wearer-{name}",
        persons=[person],
        valid_until_ms=1 << 45,
    )
    return flow.log_subject(0, "case"), log_pb2.LogEntry(case=case).SerializeToString()


async def _put_case(connection: Connection, name: str) -> Sequence[Message]:
    return [_case(name)]


async def _contacts(connection: Connection, name: str) -> int:
    return connection.mesh.count("warning", "select count(*) from contacts where person_id = ?", f"person-{name}")


async def _warned(connection: Connection, name: str) -> int:
    return connection.mesh.count("warning", "select count(*) from taken where alert_id = ?", alert_id(name))


def _advice_id(name: str) -> str:
    return f"advice-{name}"


async def _advice(connection: Connection, name: str, subject_name: str = "") -> Sequence[Message]:
    given = following_pb2.AdviceGiven(
        advice_id=_advice_id(name),
        incident_id=name,
        order_ids=[f"order-{name}"],
        subject_id=f"order-{name}/home",
        advice=dispatch_pb2.STAY_INSIDE,
        at=times.to_timestamp(MeshClock().now_ms()),
        number=2,
        sequence=5,
    )
    return [(flow.advice_subject(subject_name or name), given.SerializeToString())]


async def _advised(connection: Connection, name: str) -> int:
    return connection.mesh.count("warning", "select count(*) from taken where alert_id = ?", _advice_id(name))


async def _advice_elsewhere(connection: Connection, name: str) -> Sequence[Message]:
    return await _advice(connection, name, f"{name}-x")


async def _commanded(connection: Connection, name: str) -> int:
    """Number of commands that the leg has given for the alert. The alert is published once the leg knows its case."""
    if not await _contacts(connection, name):
        return 0
    if not await _warned(connection, name):
        for subject, data in alert_messages(name):
            await connection.publish(subject, data)
    return connection.mesh.count(
        "warning",
        "select count(*) from sendings s join messages m on m.message_id = s.message_id"
        " where m.incident_id = ? and s.outcome = 'handed over'",
        name,
    )


async def _receipt(connection: Connection, name: str) -> Sequence[Message]:
    statement = (
        "select s.command_id from sendings s join messages m on m.message_id = s.message_id where m.incident_id = ?"
    )
    command_id = str(connection.mesh.value("warning", statement, name))
    state = command_pb2.COMMAND_STATE_RECEIVED
    step = command_pb2.CommandStep(command_id=command_id, device_id=f"app-{name}", state=state, at_ms=1)
    return [(flow.command_step_subject(command_id, "RECEIVED"), step.SerializeToString())]


async def _delivered(connection: Connection, name: str) -> int:
    statement = "select count(*) from messages where incident_id = ? and delivered_ms is not null"
    return connection.mesh.count("warning", statement, name)


async def _changed(connection: Connection, name: str) -> Sequence[Message]:
    """A DISTANCE_CHANGED alert with garbage as its measure."""
    return alert_messages(name, sequence=2, kind=alert_pb2.DISTANCE_CHANGED, figures=b"{}")


async def _used_without_figure(connection: Connection, name: str) -> int:
    statement = "select count(*) from taken where alert_id = ?"
    return connection.mesh.count("warning", statement, alert_id(name, 2))


WARNING_READERS = (
    Reader(
        name="warning-figures",
        service=WARNING,
        rows=(("measure.{p}.{alert_id}", WARNING),),
        prepare=_alert,
        prepared=_warned,
        valid=_changed,
        effects=_used_without_figure,
        garbage=("measure.0.junk-{name}",),
        only_garbage=True,
    ),
    Reader(
        name="warning-cases",
        service=WARNING,
        rows=tuple((subject, WARNING) for subject in LOG_ROWS),
        valid=_put_case,
        effects=_contacts,
        garbage=("log.0.case",),
        dead_letter_by="fold",
    ),
    Reader(
        name="warning-messages",
        service=WARNING,
        rows=((ALERT, WARNING),),
        valid=_alert,
        effects=_warned,
        misplaced=_alert_elsewhere,
        garbage=("alert.0.junk-{name}",),
        dead_letter_by=flow.alerts_reader("warning"),
    ),
    Reader(
        name="warning-advice",
        service=WARNING,
        rows=(("advice.{incident_id}", WARNING),),
        prepare=_alert,
        prepared=_warned,
        valid=_advice,
        effects=_advised,
        misplaced=_advice_elsewhere,
        garbage=("advice.junk-{name}",),
        dead_letter_by="warning-advice",
    ),
    Reader(
        name="warning-receipts",
        service=WARNING,
        rows=(("command_step.{command_id}.{state}", WARNING), ("command.{by}.{command_id}", WARNING)),
        prepare=_put_case,
        prepared=_commanded,
        valid=_receipt,
        effects=_delivered,
        garbage=("command_step.junk-{name}.RECEIVED",),
        dead_letter_by="warning-commands",
    ),
)
READERS = (*(reader for leg in flow.LEGS for reader in readers_of(leg)), *WARNING_READERS)
