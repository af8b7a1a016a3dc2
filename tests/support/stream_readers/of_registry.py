"""Readers in the registry: disclosures for the ledger, alerts and steps for traces."""

from __future__ import annotations

from collections.abc import Sequence

from services.common import times
from services.common.clock import wall_us
from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, ledger_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import registry_pb2, registry_pb2_grpc
from tests.support.registry import records
from tests.support.registry.registry import MOJ, NPA
from tests.support.stream_readers.alerts import alert_messages
from tests.support.stream_readers.mesh import Connection
from tests.support.stream_readers.reader import Message, Reader

DESK = "spiffe://npa/desk/seoul"
_FACTS = "select count(*) from trace_facts where incident_id = ?"


def step_message(leg: str, incident: str, number: int = 1, assignment: str = "") -> Message:
    """A leg's step, as its outbox publishes it."""
    assigned = dispatch_pb2.Assignment(
        assignment_id=assignment or f"assign-{incident}",
        incident_id=incident,
        leg=alert_pb2.Leg.Value(leg.upper()),
        state=dispatch_pb2.OFFERED,
        subject_id="somebody",
        offer_number=number,
    )
    at = times.to_timestamp(wall_us() // 1000)
    step = dispatch_pb2.Step(step_id=f"step-{incident}-{number}", at=at, number=number, assignment=assigned)
    return flow.incident_subject(leg, incident), step.SerializeToString()


def disclosure(disclosure_id: str) -> bytes:
    """A disclosure to the police's desk."""
    return ledger_pb2.Disclosure(
        disclosure_id=disclosure_id,
        at_ms=1_700_000_000_000,
        who=DESK,
        legal_basis="TAG_16_2",
        purpose="ENFORCEMENT",
        reference="o-1",
        record_kind="WEARER",
        record_id="w-1",
        order_id="o-1",
        recipient=DESK,
    ).SerializeToString()


async def _recorded(connection: Connection, name: str) -> Sequence[Message]:
    """Stores the records of the disclosure, without which it is held back."""
    stub = registry_pb2_grpc.RegistryServiceStub(connection.channels["registry"])
    wearer, person, order = records.unlinked()
    await stub.PutWearer(registry_pb2.PutWearerRequest(wearer=wearer), **connection.call(MOJ))
    await stub.PutProtectedPerson(
        registry_pb2.PutProtectedPersonRequest(protected_person=person), **connection.call(NPA)
    )
    await stub.PutOrder(registry_pb2.PutOrderRequest(order=order), **connection.call(NPA))
    return ()


async def _disclosed(connection: Connection, name: str) -> Sequence[Message]:
    return [(f"disclosure.geofence.{name}", disclosure(name))]


async def _disclosed_elsewhere(connection: Connection, name: str) -> Sequence[Message]:
    return [(f"disclosure.geofence.{name}-x", disclosure(name))]


async def _chained(connection: Connection, name: str) -> int:
    return connection.mesh.count("registry", "select count(*) from ledger where disclosure_id = ?", name)


async def _step(connection: Connection, name: str) -> Sequence[Message]:
    return [step_message("police", name)]


async def _step_elsewhere(connection: Connection, name: str) -> Sequence[Message]:
    return [(flow.incident_subject("police", f"{name}-x"), step_message("police", name)[1])]


async def _facts(connection: Connection, name: str) -> int:
    return connection.mesh.count("registry", _FACTS, name)


async def _alert_facts(connection: Connection, name: str) -> int:
    # Only facts of the alert count, because the legs publish steps for the same alert.
    return connection.mesh.count("registry", f"{_FACTS} and fact_id like 'alert/%'", name)


async def _alert(connection: Connection, name: str) -> Sequence[Message]:
    return alert_messages(name)


READERS = (
    Reader(
        name="registry-disclosures",
        service="registry",
        rows=(("disclosure.{by}.{disclosure_id}", "registry"),),
        prepare=_recorded,
        valid=_disclosed,
        effects=_chained,
        misplaced=_disclosed_elsewhere,
        garbage=("disclosure.geofence.junk-{name}",),
        dead_letter_by=flow.DISCLOSURES_DURABLE,
    ),
    Reader(
        name="registry-trace-steps",
        service="registry",
        rows=(("incident.{leg}.{incident_id}", "registry"),),
        valid=_step,
        effects=_facts,
        misplaced=_step_elsewhere,
        garbage=("incident.police.junk-{name}",),
        logs=("registry", "trace_message_skipped"),
    ),
    Reader(
        name="registry-trace-alerts",
        service="registry",
        rows=(("alert.{p}.{alert_id}", "registry"),),
        valid=_alert,
        effects=_alert_facts,
        garbage=("alert.0.junk-{name}",),
        logs=("registry", "trace_message_skipped"),
    ),
)
"""Readers in the registry."""
