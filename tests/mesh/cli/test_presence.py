"""Decree 2 on a live mesh: a home unit's record and report keep people from being sent to an unseen wearer who is at home.

Three wearers live 900 m from three homes. Each tag was last seen twelve minutes ago, so the desks would send people by now. One wearer
has no home unit. The home unit of the second reports him. That of the third reports him once the desks were notified.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common import times
from services.common.messaging import flow, pull
from tandem.common.v1 import alert_pb2, geometry_pb2
from tests.support.common.mesh import RunningMesh, running_mesh, tandem

BEGINS_MS = times.from_rfc3339("2026-09-07T19:00:00+09:00")
LAST_SEEN_S = -720
HOME_DEG = {"lat_deg": 37.5746, "lon_deg": 126.978}
"""His home, some 900 m north of hers."""
HER_HOME_DEG = {"lat_deg": 37.5665, "lon_deg": 126.978}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("mesh") / "m") as running:
        yield running


def at(second: float) -> str:
    """A second of the story as RFC 3339 text."""
    return times.to_rfc3339(BEGINS_MS + round(second * 1000))


def scenario() -> dict[str, Any]:
    """The records of both agencies."""
    names = ("none", "unit", "later")
    wearers = [
        {"wearer_id": f"w-{name}", "national_id": f"900101-10000{n:02d}", "name": f"w{n}", "birth_date": "1990-01-01"}
        for n, name in enumerate(names)
    ]
    return {
        "wearers": wearers,
        "tags": [{"device_id": f"tag-{name}", "wearer_id": f"w-{name}"} for name in names],
        "presence_units": [
            {
                "unit_id": f"home-{name}",
                "wearer_id": f"w-{name}",
                "kind": "PRESENCE_UNIT_KIND_HOME_UNIT",
                "place": HOME_DEG | {"radius_m": 30},
                "installed_from": at(-86_400),
                "report_interval_s": 600,
            }
            for name in names[1:]
        ],
        "orders": [
            {
                "order_id": f"order-{name}",
                "respondent": {key: wearer[key] for key in ("national_id", "name", "birth_date")},
                "places": [{"place_id": "home", "circle": HER_HOME_DEG | {"radius_m": 30}}],
                "valid_from": at(-86_400),
                "valid_until": at(86_400),
                "type": "ORDER_TYPE_STALKING_APPROACH",
            }
            for name, wearer in zip(names, wearers, strict=True)
        ],
    }


def positions(name: str, last_s: float) -> Iterator[dict[str, Any]]:
    """The last positions of a wearer, which come late: he rested at home for seven minutes. They come from access points."""
    for number in range(29):
        yield {
            "kind": "position",
            "device_id": f"tag-{name}",
            "report_id": f"r{number}",
            "fix_time": at(last_s - 15 * (28 - number)),
            "received_at": at(0),
            "accuracy_m": 5,
            "source": "POSITION_SOURCE_WIFI",
            **HOME_DEG,
        }


def presence(name: str, arrives_s: float) -> dict[str, Any]:
    """A report of a home unit: the wearer is at home, and has been since he was last seen."""
    return {
        "kind": "presence",
        "device_id": f"tag-{name}",
        "report_id": "p1",
        "unit_id": f"home-{name}",
        "since": at(LAST_SEEN_S),
        "seen": at(arrives_s),
        "received_at": at(arrives_s),
    }


async def alerts_of(mesh: RunningMesh) -> list[alert_pb2.Alert]:
    async with mesh.now.nats.bus_as("geofence") as bus:
        last = (await bus.bounds_of(flow.ALERTS.name)).last
        alerts: list[alert_pb2.Alert] = []
        async for messages in pull.read(bus, flow.ALERTS.name, 1):
            alerts += [alert_pb2.Alert.FromString(message.data) for message in messages]
            if messages[-1].sequence >= last:
                break
    return alerts


def near(alerts: list[alert_pb2.Alert], name: str) -> list[alert_pb2.Alert]:
    """The alerts of an order that the wearer may be near her, unseen."""
    return [a for a in alerts if a.order_id == f"order-{name}" and a.kind == alert_pb2.UNKNOWN_NEAR]


def test_decree_2_nobody_is_sent_to_an_unseen_wearer_whom_his_home_unit_hears(
    mesh: RunningMesh, tmp_path: Path
) -> None:
    lines = [
        presence("unit", 0),
        *positions("unit", LAST_SEEN_S),
        *positions("later", -240),
        *positions("none", LAST_SEEN_S),
        presence("later", 5),
    ]
    (tmp_path / "scenario.json").write_text(json.dumps(scenario()))
    (tmp_path / "reports.ndjson").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    replayed = tandem(
        *("replay", "--dir", str(mesh.folder), "--json"),
        *("--scenario", str(tmp_path / "scenario.json"), "--reports", str(tmp_path / "reports.ndjson")),
    )
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    alerts = asyncio.run(alerts_of(mesh))

    # Without a home unit people are sent to both sides; with one, nobody is, though its positions are in the same log before those.
    assert geometry_pb2.RESPOND in [alert.demand for alert in near(alerts, "none")]
    assert near(alerts, "unit") == []

    # A notice ends by the home unit's report, and says so.
    notified, ended = near(alerts, "later")
    assert (notified.demand, ended.demand) == (geometry_pb2.NOTIFY, geometry_pb2.RECORD)
    assert (ended.cause.device_id, ended.cause.of_wearer) == ("tag-later", True)

    explained = explanation(mesh, ended)
    assert (explained["again"], explained["differences"]) == ("SAME", [])
    assert explained["entry"]["what"].startswith("presence of tag-later at home-later, since ")
    assert {report["source"] for report in explained["sides"][0]["last_reports"]} == {"WIFI"}
    table = tandem("explain", ended.alert_id, "--dir", str(mesh.folder)).stdout
    assert "presence of tag-later at home-later" in " ".join(table.split()) and "Wi-Fi" in table
    sent = next(alert for alert in near(alerts, "none") if alert.demand == geometry_pb2.RESPOND)
    assert explanation(mesh, sent)["again"] == "SAME"
    assert {alert.order_id for alert in alerts if alert.demand == geometry_pb2.RESPOND} == {"order-none"}
    assert {alert_pb2.Leg.Name(to.leg) for to in sent.destinations} >= {"PROBATION", "POLICE"}


def explanation(mesh: RunningMesh, alert: alert_pb2.Alert) -> dict[str, Any]:
    outcome = tandem("explain", alert.alert_id, "--dir", str(mesh.folder), "--json")
    assert outcome.returncode == 0, outcome.stderr
    content: dict[str, Any] = json.loads(outcome.stdout)
    return content
