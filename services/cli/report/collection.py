"""Collect the alerts of an order over a period from a running mesh. The ledger records the disclosure before anything is returned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from services.cli.calls import PATIENCE_S
from services.cli.evidence.collection import NATS_USER, BundleGrounds
from services.cli.failure import MISUSED, CommandFailed
from services.cli.report import compliance, older_alerts
from services.cli.report.compliance import CompliancePeriod
from services.cli.report.facts import DecidedAlert
from services.cli.stack.mesh import MeshConnection
from services.common import ids
from services.common.messaging import flow, pull, streams
from services.common.messaging import stored as readers
from services.common.messaging.bus import Bus
from services.common.rpc.errors import InvalidField, PermanentError, RetryableError
from services.registry.disclosure.translate import parse_disclosure
from tandem.common.v1 import ledger_pb2, log_pb2

LEG_LAG_MS = 600_000
"""Maximum time from the decision of an alert until a leg that was down records it, milliseconds."""


async def collect(
    running: MeshConnection, folder: Path, order_id: str, *, from_ms: int, until_ms: int, grounds: BundleGrounds
) -> CompliancePeriod:
    """Collects the alerts of an order in a period: those that ALERTS holds, and older ones from the legs' records in `folder`.

    Raises CommandFailed if the mesh doesn't know the order, or refuses the grounds.
    """
    now_ms = running.clock.now_ms()
    try:
        async with asyncio.timeout(PATIENCE_S) as patience, running.nats.bus_as(NATS_USER) as bus:
            log_meta = await streams.read_log_meta(bus)
            patience.reschedule(None)  # no timeout here: reading all alerts takes long
            first = (await bus.bounds_of(flow.ALERTS.name)).first
            alerts = [fact async for fact in _alerts(bus)]
            known_from_ms = 0 if first <= 1 else alerts[0].decided_ms if alerts else now_ms
            if known_from_ms:
                kept = {fact.alert.alert_id for fact in alerts}
                older = await older_alerts.read(folder, order_id, from_ms=from_ms, before_ms=known_from_ms + LEG_LAG_MS)
                alerts = [*(fact for fact in older if fact.alert.alert_id not in kept), *alerts]
            case = await _case(bus, log_meta.partitions, order_id)
            if case is None and all(fact.alert.order_id != order_id for fact in alerts):
                raise CommandFailed(f"--order: the mesh knows no {order_id}", MISUSED)
            named = (fact.alert.wearer_id for fact in alerts if fact.alert.order_id == order_id)
            wearer_id = case.wearer_id if case else next(named)
            await _disclose(bus, order_id, wearer_id, grounds=grounds, now_ms=now_ms)
    except TimeoutError:
        raise CommandFailed(f"no answer from {running.nats.url} for {PATIENCE_S:.0f} s") from None
    except (RetryableError, PermanentError) as error:
        raise CommandFailed(error.reason) from None
    return CompliancePeriod(
        order_id=order_id,
        from_ms=from_ms,
        until_ms=until_ms,
        case=case,
        alerts=compliance.of_order(alerts, order_id, from_ms=from_ms, until_ms=until_ms),
        known_from_ms=known_from_ms,
        made_at_ms=now_ms,
        made_by=grounds.who,
        made_for=grounds.recipient,
        legal_basis=grounds.legal_basis,
    )


async def _alerts(bus: Bus) -> AsyncIterator[DecidedAlert]:
    """All alerts that the mesh holds, in the order in which they were stored. An unreadable message is passed over."""
    bounds = await bus.bounds_of(flow.ALERTS.name)
    async for message in pull.between(bus, flow.ALERTS.name, bounds.first, last=bounds.last):
        try:
            yield DecidedAlert(readers.alert(message.data), None)
        except InvalidField:
            continue


async def _case(bus: Bus, partitions: int, order_id: str) -> log_pb2.CaseSnapshot | None:
    """The newest snapshot of an order's joint case; None if the log holds none."""
    found: log_pb2.CaseSnapshot | None = None
    for partition in range(partitions):
        stream, subject = flow.log_stream(partition), flow.log_subject(partition, "case")
        if await bus.last_of(stream, subject) is None:
            continue
        async for messages in pull.read(bus, stream, 1, subjects=(subject,)):
            for message in messages:
                case = log_pb2.LogEntry.FromString(message.data).case
                if case.order_id == order_id and (found is None or case.version >= found.version):
                    found = case
            if messages[-1].pending == 0:
                break
    return found


async def _disclose(bus: Bus, order_id: str, wearer_id: str, *, grounds: BundleGrounds, now_ms: int) -> None:
    """Stores the disclosure for the ledger. Raises CommandFailed if the grounds don't allow it."""
    row = ledger_pb2.Disclosure(
        disclosure_id=ids.hash_id("compliance", order_id, grounds.recipient, now_ms),
        at_ms=now_ms,
        who=grounds.who,
        legal_basis=grounds.legal_basis,
        purpose=grounds.purpose,
        reference=order_id,
        record_kind="WEARER",
        record_id=wearer_id,
        order_id=order_id,
        recipient=grounds.recipient,
    )
    try:
        parse_disclosure(row.SerializeToString())
    except InvalidField as error:
        raise CommandFailed(f"not disclosed: {error}", MISUSED) from None
    subject = flow.disclosure_subject(NATS_USER, row.disclosure_id)
    await bus.publish(subject, row.SerializeToString(), msg_id=row.disclosure_id)
