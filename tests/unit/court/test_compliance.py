"""The report on an order and a period: alerts that the stream has forgotten come from the legs' own records."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from pypdf import PdfReader

from services.common.failure import CommandFailed
from services.common.messaging import flow
from services.court.evidence.leg_records import MeshRecords
from services.court.report import compliance
from services.court.report.compliance import CompliancePeriod
from services.court.report.words import Words
from services.dispatch.domain.enums import Demand, Exercise
from services.dispatch.domain.events import AlertFolded
from services.dispatch.leg import chain, tables
from services.dispatch.leg.chain import ChainHead
from tandem.common.v1 import alert_pb2

DAY_MS = 86_400_000
BEGAN_MS = 1_790_000_000_000


def folded(number: int, order_id: str, days: float, *, exercise: Exercise = Exercise.NONE) -> AlertFolded:
    """A ring that was entered so many days after the beginning."""
    return AlertFolded(
        at_ms=BEGAN_MS + int(days * DAY_MS),
        alert_id=f"alert-{number}",
        place=(number, 0),
        demand=Demand.RESPOND,
        order_id=order_id,
        assignment_ids=(f"assignment-{number}",),
        ends=False,
        kind=alert_pb2.RING_ENTERED,
        wearer_id="W-1",
        ring_m=100.0,
        exercise=exercise,
    )


def store(folder: Path, leg: str, alerts: Sequence[AlertFolded]) -> None:
    """Stores alerts in a leg's database, each as an incident of its own."""
    path = folder / "data" / f"dispatch-{leg}" / f"dispatch-{leg}.sqlite3"
    path.parent.mkdir(parents=True)
    engine = sa.create_engine(f"sqlite:///{path}")
    tables.metadata.create_all(engine)
    head = ChainHead()
    with engine.begin() as connection:
        for alert in alerts:
            incident_id = f"incident-{alert.alert_id}"
            link = chain.write(head, incident_id, alert)
            head = ChainHead(link.id, link.hash)
            connection.execute(sa.insert(tables.events), link._asdict())
            row = {"opened_sequence": link.id, "opened_ms": alert.at_ms, "order_ids": [alert.order_id]}
            values = {"incident_id": incident_id, **row, "exercise": int(alert.exercise)}
            connection.execute(sa.insert(tables.incidents), values)
    engine.dispose()


@pytest.fixture
def mesh_folder(tmp_path: Path) -> Path:
    """Both legs had two alerts of the order, the police one more; an exercise, another order, and one before the period."""
    shared = [folded(1, "order_1", -5), folded(2, "order_1", 1), folded(3, "order_1", 2)]
    others = [folded(4, "order-1", 2), folded(5, "order_1", 2, exercise=Exercise.DRILL)]
    store(tmp_path, "probation", shared)
    store(tmp_path, "police", [*shared, folded(6, "order_1", 3), *others, folded(7, "order_1", 9)])
    return tmp_path


async def test_alerts_that_the_stream_has_forgotten_come_from_both_legs_each_once(mesh_folder: Path) -> None:
    records = MeshRecords(mesh_folder, dict.fromkeys(flow.LEGS, ""))
    found = await compliance.read_older_alerts(records, "order_1", from_ms=BEGAN_MS, before_ms=BEGAN_MS + 5 * DAY_MS)
    assert [fact.alert.alert_id for fact in found] == ["alert-2", "alert-3", "alert-6"]
    period = CompliancePeriod(
        order_id="order_1",
        from_ms=BEGAN_MS,
        until_ms=BEGAN_MS + 30 * DAY_MS,
        case=None,
        alerts=compliance.of_order(found, "order_1", from_ms=BEGAN_MS, until_ms=BEGAN_MS + 30 * DAY_MS),
        known_from_ms=BEGAN_MS + 5 * DAY_MS,
        made_at_ms=BEGAN_MS + 31 * DAY_MS,
        made_by="spiffe://tandem/reviewer/kim",
        made_for="spiffe://npa/desk/seoul",
        legal_basis="STALKING_17_6",
    )
    made = compliance.compliance_pdf(period, Words("ko"))
    text = "".join(page.extract_text() for page in PdfReader(io.BytesIO(made)).pages)
    assert "사건 3건" in text and "접근 3건" in text and "incident-alert-6" in text and "100 m" in text
    assert "양 기관의 조치 기록에서 옮긴 것" in text and "스토킹처벌법 제17조의6" in text
    assert made == compliance.compliance_pdf(period, Words("ko"))
    english = compliance.compliance_pdf(period, Words("en"))
    assert "from the legs' records" in " ".join(
        "".join(page.extract_text() for page in PdfReader(io.BytesIO(english)).pages).split()
    )


async def test_a_mesh_without_databases_has_no_older_alerts_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    records = MeshRecords(tmp_path, dict.fromkeys(flow.LEGS, ""))
    assert await compliance.read_older_alerts(records, "order_1", from_ms=0, before_ms=BEGAN_MS) == []
    path = tmp_path / "data" / "dispatch-police" / "dispatch-police.sqlite3"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all, but long enough to be read as one " * 100)
    with pytest.raises(CommandFailed, match=r"dispatch-police\.sqlite3: file is not a database"):
        await compliance.read_older_alerts(records, "order_1", from_ms=0, before_ms=BEGAN_MS)
