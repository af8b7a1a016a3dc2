"""Translates the lists of devices of ingest and of the evaluators into the cards of the operators' pages."""

from __future__ import annotations

from services.common import times
from services.console.domain.reporting import AskCard, AskedDevice, HistoryLine, MeasuredTag, asker_of
from services.console.translate import moment, source
from tandem.common.v1 import command_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.ingest.v1 import ingest_pb2


def asked(listed: ingest_pb2.DeviceReporting) -> AskedDevice:
    """Translates a device of ingest's list."""
    return AskedDevice(
        device_id=listed.device_id,
        asks=tuple(
            AskCard(
                by=ask.asked_by,
                interval_s=ask.interval_s,
                asked_ms=times.from_timestamp(ask.asked_at),
                until_ms=times.from_timestamp(ask.until),
                refused=ask.refused,
            )
            for ask in listed.asks
        ),
        delivery=_state(listed.delivery),
        delivery_ms=moment(listed, "delivery_since"),
        refused_because=listed.refused_because,
        observed_s=listed.observed_interval_s,
        obeys=ingest_pb2.Obedience.Name(listed.obeys).removeprefix("OBEDIENCE_"),
        slow=listed.slow,
        last_fix_ms=moment(listed, "last_fix"),
        locates_sent=listed.locates_sent,
        locates_answered=listed.locates_answered,
    )


def measured(listed: geofence_pb2.TagQuality) -> MeasuredTag:
    """Translates a tag of an evaluator's list."""
    return MeasuredTag(
        device_id=listed.device_id,
        kept_s=listed.kept_interval_s,
        slow=listed.slow,
        stated_m=listed.stated_accuracy_m,
        observed_m=listed.observed_accuracy_m if listed.HasField("observed_accuracy_m") else None,
        contradicted=listed.accuracy_contradicted,
        last_fix_ms=moment(listed, "last_fix"),
        source=source(listed.last_source),
        unit_id=listed.presence_unit_id,
        at_unit_ms=moment(listed, "presence_seen"),
    )


def history(status: ingest_pb2.CommandStatus) -> HistoryLine:
    """Translates a command of a device."""
    instruction = status.command.instruction
    return HistoryLine(
        command_id=status.command.command_id,
        kind=instruction.WhichOneof("kind") or "",
        interval_s=instruction.report_every.interval_s if instruction.HasField("report_every") else 0,
        asker=asker_of(status.issued_by),
        state=_state(status.state),
        since_ms=moment(status, "since"),
        reason=status.reason,
    )


def _state(state: command_pb2.CommandState.ValueType) -> str:
    return command_pb2.CommandState.Name(state).removeprefix("COMMAND_STATE_") if state else ""
