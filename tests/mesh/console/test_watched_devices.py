"""Pages of the devices of a desk's own side, and the notice of a low battery on the live page, with fake services of devices."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from services.common import times
from services.console.domain.devices import EquipmentCard, PhoneCard, watched_devices
from services.console.pages.texts import TEXTS
from tandem.common.v1 import command_pb2, log_pb2, presence_pb2
from tandem.geofence.v1 import device_state_pb2
from tandem.ingest.v1 import battery_pb2
from tests.support.console.console import PATIENCE_S
from tests.support.console.devices import T0, FakeDevices, asks, command, listed, operators_bench


def battery(device_id: str, charge_pct: float, empty_in_h: float | None = None) -> battery_pb2.DeviceBattery:
    row = battery_pb2.DeviceBattery(
        device_id=device_id, subject_id=f"w-{device_id}", charge_pct=charge_pct, reported_at=times.to_timestamp(T0)
    )
    if empty_in_h is not None:
        row.empty_at.CopyFrom(times.to_timestamp(T0 + round(empty_in_h * 3_600_000)))
    return row


def devices() -> FakeDevices:
    """Three devices with a low battery, the second of which dies first; one is silent, one is well."""
    heard = times.to_timestamp(T0)
    state = device_state_pb2.DeviceState
    low = log_pb2.BATTERY_LOW
    return FakeDevices(  # type: ignore[abstract]  # the console calls no other methods
        asked=[listed("tag-2", 3, asks=asks(("spiffe://moj/desk/lee", 60)), observed_interval_s=61)],
        commands=[
            command("c-1", command_pb2.COMMAND_STATE_RECEIVED, 60, report_every=command_pb2.ReportEvery(interval_s=60))
        ],
        batteries=[battery("tag-1", 12), battery("tag-2", 15, 1.5), battery("tag-5", 80)],
        states=[
            state(device_id="tag-1", subject_id="w-1", last_heard=heard),
            state(
                device_id="tag-2",
                subject_id="w-2",
                last_heard=heard,
                last_fix=heard,
                accuracy_m=7.6,
                source=presence_pb2.POSITION_SOURCE_GNSS,
                active_events=[low],
            ),
            state(device_id="tag-3", subject_id="w-3", active_events=[low]),
            state(device_id="tag-4", subject_id="w-4", silent=True),
        ],
    )


async def test_the_device_that_dies_first_is_at_the_top_and_its_page_has_what_is_known(tmp_path: Path) -> None:
    async with operators_bench(tmp_path, devices()) as bench, bench.visitor("probation") as desk:
        page = await desk.read("/watched-devices")
        assert re.findall(r'data-device="([^"]+)"', page) == ["tag-2", "tag-1", "tag-3", "tag-4"]
        assert "15 %" in page and "tag-5" not in page and TEXTS["device_silent"][0] in page
        page = await desk.read("/watched-devices/tag-2")
        assert "15 %" in page and "8 m" in page and TEXTS["source_GNSS"][0] in page
        assert TEXTS["asker_desk"][0] in page and TEXTS["LOW_BATTERY"][0] in page
        status, page, _ = await desk.get("/watched-devices/nobody")
        assert status == 404 and TEXTS["device_404"][0] in page
        status, page, _ = await desk.get("/watched-devices/a%20b")
        assert status == 400 and TEXTS["device_400"][0] in page
        async with asyncio.timeout(PATIENCE_S), desk.stream() as messages:
            notices: list[dict[str, Any]] = []
            async for _, message in messages:
                notices += [alert for alert in message["alerts"] if alert["kind"] == "LOW_BATTERY"]
                if {notice["wearer"] for notice in notices} == {"w-1", "w-2", "w-3"}:
                    break
        charges = {notice["device"]: (notice["charge"], notice["empty"]) for notice in notices}
        assert charges == {"tag-1": (12, None), "tag-2": (15, T0 + 5_400_000), "tag-3": (None, None)}


@pytest.mark.parametrize("without", ["INGEST", "GEOFENCE"])
async def test_a_service_that_is_away_is_named_and_the_rest_is_shown(tmp_path: Path, without: str) -> None:
    async with operators_bench(tmp_path, devices(), without=without) as bench, bench.visitor("probation") as desk:
        page = await desk.read("/watched-devices")
        assert TEXTS[f"watched_away_{without.lower()}"][0] in page and "tag-2" in page


def test_a_phone_whose_app_is_not_on_the_screen_is_not_silent_and_one_without_location_needs_somebody() -> None:
    silent = [EquipmentCard(id_, f"p-{id_}", is_silent=True) for id_ in ("locked", "open", "unknown")]
    phones = [
        PhoneCard("locked", location="GOOD", location_ms=T0, is_hidden=True, screen_ms=T0),
        PhoneCard("open", location="UNAVAILABLE", location_ms=T0, is_hidden=False, screen_ms=T0),
        PhoneCard("denied", location="DENIED", location_ms=T0, is_hidden=True, screen_ms=T0),
        PhoneCard("vague", location="VAGUE", location_ms=T0, is_hidden=False, screen_ms=T0),
    ]
    found = {device.device_id: device for device in watched_devices(silent, [], phones)}
    assert {id_ for id_, device in found.items() if device.is_in_trouble} == {"open", "unknown", "denied", "vague"}
    assert found["locked"].is_hidden and not found["locked"].is_silent and found["unknown"].is_silent
    assert (found["denied"].location_trouble, found["open"].location_trouble) == ("DENIED", "")
