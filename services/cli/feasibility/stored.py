"""Reads the stored order of a mesh for a feasibility study. The disclosure is durable before anything of the order is shown."""

from __future__ import annotations

import asyncio

from services.cli.calls import PATIENCE_S
from services.cli.explain.disclosures import Reader, disclosure, record
from services.cli.failure import CommandFailed
from services.cli.feasibility.inputs import RING_EXAMPLE
from services.cli.stack.mesh import MeshConnection
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.privacy.grounds import RecordKind
from services.common.rpc.errors import InvalidField, RetryableError
from services.geofence import translate
from services.geofence.domain.entries import Case, Demand
from tandem.common.v1 import ledger_pb2


async def read(running: MeshConnection, order_id: str, wearer_id: str, *, to: Reader) -> Case:
    """Returns the newest case of an order, once the ledger's rows for the reading are stored. Raises CommandFailed."""
    try:
        async with running.nats.bus_as("explain") as bus:
            case = await find(bus, order_id, wearer_id)
            async with asyncio.timeout(PATIENCE_S):
                await record(bus, disclosures(case, to, running.clock.now_ms()))
    except TimeoutError:
        raise CommandFailed(f"no answer from {running.nats.url} for {PATIENCE_S:.0f} s") from None
    except RetryableError as error:
        raise CommandFailed(error.reason) from None
    return case


async def find(bus: Bus, order_id: str, wearer_id: str) -> Case:
    """Returns the newest case of an order in the log. Raises CommandFailed if there is none, or several wearers to choose from."""
    log_meta = await streams.read_log_meta(bus)
    newest: dict[str, Case] = {}
    for partition in range(log_meta.partitions):
        stream = flow.log_stream(partition)
        bounds = await bus.bounds_of(stream)
        async for message in pull.between(bus, stream, bounds.first, last=bounds.last):
            if message.subject != flow.log_subject(partition, "case"):
                continue
            try:
                body = translate.stored_body(message.subject, message.data)
            except InvalidField:
                continue  # unreadable: the fold made it a dead letter
            if isinstance(body, Case) and body.order_id == order_id and wearer_id in ("", body.wearer_id):
                newest[body.wearer_id] = body
    if not newest:
        days = flow.LOG.max_age_s // flow.DAY_S
        raise CommandFailed(
            f"the log has no case of the order {order_id}: it restrains no wearer, or its entries are older than {days} days"
        )
    if len(newest) > 1:
        raise CommandFailed(
            f"--order: {order_id} restrains several wearers; choose one by --wearer: {', '.join(newest)}"
        )
    (case,) = newest.values()
    return case


def require_response(case: Case) -> None:
    """Raises CommandFailed unless a ring of the order demands a response."""
    if all(ring.action is not Demand.RESPOND for ring in case.rings):
        raise CommandFailed(f"--order: {case.order_id} has no ring that demands RESPOND {RING_EXAMPLE}")


def disclosures(case: Case, to: Reader, now_ms: int) -> list[ledger_pb2.Disclosure]:
    """Disclosure records for reading an order and where its persons are protected, one for each subject."""
    subjects = [(RecordKind.ORDER, case.order_id), (RecordKind.WEARER, case.wearer_id)]
    subjects += [(RecordKind.PROTECTED_PERSON, target.target_id) for target in case.targets if target.is_person]
    return [
        disclosure(kind, subject_id, to, order_id=case.order_id, reference=case.order_id, now_ms=now_ms)
        for kind, subject_id in subjects
    ]
