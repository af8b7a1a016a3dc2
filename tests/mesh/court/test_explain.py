"""`tandem explain` and `tandem feasibility` on a running mesh, and on a log that no longer holds the deciding entry."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.common.failure import FAILED, CommandFailed
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.court.explain import refold
from tandem.common.v1 import alert_pb2, geometry_pb2
from tests.support.common.mesh import RunningMesh, running_mesh, tandem
from tests.support.geofence import log

POSITIONS = ("--positions", "--reviewer", "lee", "--legal-basis", "STALKING_9_1_3_2")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("mesh") / "m", "--clock-rate", "60") as running:
        played = tandem("demo", "--dir", str(running.folder))
        assert played.returncode == 0, played.stderr
        yield running


async def stored_alerts(bus: Bus) -> list[alert_pb2.Alert]:
    last = (await bus.bounds_of(flow.ALERTS.name)).last
    alerts: list[alert_pb2.Alert] = []
    async for messages in pull.read(bus, flow.ALERTS.name, 1):
        alerts += [alert_pb2.Alert.FromString(message.data) for message in messages]
        if messages[-1].sequence >= last:
            break
    return alerts


async def read_alerts(mesh: RunningMesh) -> list[alert_pb2.Alert]:
    async with mesh.now.nats.bus_as("geofence") as bus:
        return await stored_alerts(bus)


def test_a_refold_reproduces_each_alert_of_the_demo(mesh: RunningMesh) -> None:
    alerts = asyncio.run(read_alerts(mesh))
    assert {alert_pb2.AlertKind.Name(alert.kind) for alert in alerts} >= {"RING_ENTERED", "RING_CLEARED"}
    decisive_devices = set()
    for alert in alerts[::3]:
        outcome = tandem("explain", alert.alert_id, "--dir", str(mesh.folder), "--json")
        assert (outcome.returncode, outcome.stderr) == (0, "")
        output = json.loads(outcome.stdout)
        assert (output["again"], output["differences"]) == ("SAME", [])
        assert output["alert"]["alert_id"] == alert.alert_id
        if decisive := output["entry"]["decisive"]:  # none if a device was silent for too long
            assert decisive["device_id"] == alert.cause.device_id
            decisive_devices.add(alert.cause.device_id)
        assert {side["side"] for side in output["sides"]} >= {"wearer"}
    assert decisive_devices


def test_tables_show_coordinates_and_figures_only_on_request(mesh: RunningMesh) -> None:
    alert = next(alert for alert in asyncio.run(read_alerts(mesh)) if alert.demand == geometry_pb2.RESPOND)
    command = ("explain", alert.alert_id, "--dir", str(mesh.folder))
    without, with_them = tandem(*command), tandem(*command, *POSITIONS)
    for outcome in (without, with_them):
        assert outcome.returncode == 0 and "the same again, byte for byte" in outcome.stdout
        assert "contacts in the 10 minutes before it" in outcome.stdout
    assert "37.63" not in without.stdout and "127.21" not in without.stdout
    assert "37.63" in with_them.stdout and "127.21" in with_them.stdout
    assert "probability inside" in with_them.stdout and "probability inside" not in without.stdout


def test_positions_need_a_reviewer_and_legal_grounds(mesh: RunningMesh) -> None:
    alert = next(alert for alert in asyncio.run(read_alerts(mesh)) if alert.demand == geometry_pb2.RESPOND)
    command = ("explain", alert.alert_id, "--dir", str(mesh.folder), "--positions")
    who, why = ("--reviewer", "kim"), ("--legal-basis", "TAG_DECREE_23_10")
    for lacks, named in (
        ((), "--reviewer"),
        (why, "--reviewer"),
        (who, "--legal-basis"),
        ((*who, "--legal-basis", "BECAUSE"), "--legal-basis"),
        ((*who, "--legal-basis", "TAG_16_2"), "--legal-basis"),
        ((*who, *why, "--purpose", "RETENTION"), "--purpose"),
    ):
        outcome = tandem(*command, *lacks)
        assert (outcome.returncode, outcome.stdout) == (2, "") and named in outcome.stderr
    assert tandem(*command, *who, *why, "--purpose", "COURT").returncode == 0
    give_up_at = time.monotonic() + 20
    while len(rows := ledger(mesh, "spiffe://tandem/reviewer/kim")) < 2:
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
    common = ("SHARED", "TAG_DECREE_23_10", "COURT", alert.incident_id, alert.order_id, 0)
    assert rows == [(*common, "PROTECTED_PERSON"), (*common, "WEARER")]


def ledger(mesh: RunningMesh, who: str) -> list[tuple[object, ...]]:
    """The rows of the registry's ledger on disclosures to a reader, in order."""
    with closing(sqlite3.connect(mesh.folder / "data" / "registry" / "registry.sqlite3")) as database:
        return database.execute(
            "select deed, legal_basis, purpose, reference, order_id, expires_at_ms, record_kind"
            " from ledger where who = ? and recipient = who order by sequence",
            (who,),
        ).fetchall()


def test_feasibility_of_a_stored_order_is_disclosed_before_anything_is_shown(mesh: RunningMesh, tmp_path: Path) -> None:
    alert = next(alert for alert in asyncio.run(read_alerts(mesh)) if alert.demand == geometry_pb2.RESPOND)
    track = tmp_path / "track.csv"
    lines = [f"{1_783_263_600 + 120 * i},37.9,127.2,10\n" for i in range(721)]
    track.write_text("time,lat,lon,accuracy\n" + "".join(lines))
    given = ("--history", str(track), "--dir", str(mesh.folder), "--json")
    grounds = ("--reviewer", "park", "--legal-basis", "STALKING_9_1_3_2", "--purpose", "COURT")
    for lacks, named in (((), "--reviewer"), (("--reviewer", "park"), "--legal-basis")):
        refused = tandem("feasibility", "--order", alert.order_id, *given, *lacks)
        assert (refused.returncode, refused.stdout) == (2, "") and named in refused.stderr
    unknown = tandem("feasibility", "--order", "O-none", *given, *grounds)
    assert (unknown.returncode, unknown.stdout) == (1, "") and "no case of the order O-none" in unknown.stderr
    assert ledger(mesh, "spiffe://tandem/reviewer/park") == []
    outcome = tandem("feasibility", "--order", alert.order_id, *given, *grounds)
    assert outcome.returncode == 0, outcome.stderr
    output = json.loads(outcome.stdout)
    assert (output["order_id"], output["history"]["days"], output["dispatches_a_week"]) == (alert.order_id, 1.0, 0)
    give_up_at = time.monotonic() + 20
    while len(rows := ledger(mesh, "spiffe://tandem/reviewer/park")) < 3:
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
    common = ("SHARED", "STALKING_9_1_3_2", "COURT", alert.order_id, alert.order_id, 0)
    assert sorted(rows) == [(*common, kind) for kind in ("ORDER", "PROTECTED_PERSON", "WEARER")]


def test_an_unknown_alert_is_named_in_the_error(mesh: RunningMesh) -> None:
    outcome = tandem("explain", "alert-none", "--dir", str(mesh.folder))
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr == "ALERTS holds no alert-none; alerts are kept for 30 days\n"
    outcome = tandem("explain", "alert.*", "--dir", str(mesh.folder))
    assert outcome.returncode == 2 and outcome.stderr.startswith("ALERT: ")


def test_an_alert_that_the_log_does_not_reproduce_is_different(mesh: RunningMesh) -> None:
    async def forge() -> None:
        async with mesh.now.nats.bus_as("geofence") as bus:
            forged = next(
                stored_alert for stored_alert in await stored_alerts(bus) if stored_alert.kind == alert_pb2.RING_ENTERED
            )
            forged.alert_id, forged.demand = "alert-forged", geometry_pb2.RECORD
            await bus.publish(flow.alert_subject(0, "alert-forged"), forged.SerializeToString(), expected_last=0)

    asyncio.run(forge())
    outcome = tandem("explain", "alert-forged", "--dir", str(mesh.folder))
    assert outcome.returncode == 1 and "DIFFERENT" in outcome.stdout
    assert "demand: was RECORD, is WARN" in outcome.stdout


async def test_an_alert_whose_entry_has_expired_is_refused(bus: Bus) -> None:
    for n in range(3):
        entry = log.positions_entry(log.position("t1", n, 0))
        await bus.publish(flow.log_subject(0, "report"), entry.SerializeToString())
    alert = alert_pb2.Alert(alert_id="alert-old", sequence=1)
    await bus.publish(flow.alert_subject(0, "alert-old"), alert.SerializeToString())
    config = (await bus.api("STREAM.INFO.LOG_0", {}))["config"]
    # The server refuses a duplicate window longer than the maximum age.
    await bus.api("STREAM.UPDATE.LOG_0", config | {"max_age": 100_000_000, "duplicate_window": 100_000_000})
    async with asyncio.timeout(30):
        while (await bus.bounds_of("LOG_0")).first == 1:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    stored, log_meta = await refold.find(bus, "alert-old")
    with pytest.raises(
        CommandFailed, match="no longer holds entry 1, which decided it: entries are kept for 7 days"
    ) as no:
        await refold.refold(bus, stored, log_meta, progress=lambda at, last: None)
    assert no.value.exit_code == FAILED
