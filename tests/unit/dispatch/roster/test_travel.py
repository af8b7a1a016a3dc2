"""Travel times: one suite for the great circle and for a road map, which a small OSRM server replaces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter

from services.common.geometry import LatLon, great_circle_m
from services.dispatch.domain.enums import Estimate
from services.dispatch.leg import availability
from services.dispatch.leg.availability import TravelTimes, open_travel_times
from services.dispatch.metrics import DispatchMetrics
from tests.support.dispatch.roster import SEOUL

NEAR = LatLon(37.57, 126.98)
FAR = LatLon(37.60, 127.05)
FARTHER = LatLon(37.70, 127.20)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Osrm:
    """A server of OSRM's table protocol that records its requests and drives at 10 m/s along the great circle."""

    url: str = ""
    asked: list[str] = field(default_factory=list)

    async def table(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        points = []
        for part in request.match_info["points"].split(";"):
            lon, lat = part.split(",")
            points.append(LatLon(float(lat), float(lon)))
        sources = [int(n) for n in request.query["sources"].split(";")]
        (to,) = (int(n) for n in request.query["destinations"].split(";"))
        durations = [[great_circle_m(points[n], points[to]) / 10] for n in sources]
        return web.json_response({"code": "Ok", "durations": durations})


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([web.get("/table/v1/driving/{points}", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture(params=["great circle", "roads"])
async def times(request: pytest.FixtureRequest) -> AsyncIterator[TravelTimes]:
    """Each implementation of TravelTimes."""
    if request.param == "great circle":
        async with open_travel_times("", failures()) as opened:
            yield opened
    else:
        async with serving(Osrm().table) as url, open_travel_times(url, failures()) as opened:
            yield opened


async def test_each_origin_has_its_time_and_a_nearer_one_is_sooner(times: TravelTimes) -> None:
    travels = await times.to(SEOUL, [FAR, NEAR, FARTHER])
    assert travels[1].travel_s < travels[0].travel_s < travels[2].travel_s
    assert len({travel.estimate for travel in travels}) == 1


async def test_an_origin_at_the_destination_takes_0_s_and_no_origins_give_no_times(times: TravelTimes) -> None:
    (at_destination,) = await times.to(SEOUL, [SEOUL])
    assert at_destination.travel_s == 0
    assert await times.to(SEOUL, []) == []


async def test_more_origins_than_one_table_allows_have_a_time_each(times: TravelTimes) -> None:
    origins = [LatLon(37.5 + n / 1_000, 127) for n in range(availability.SOURCES_MAX + 50)]
    travels = await times.to(SEOUL, origins)
    assert len(travels) == len(origins) and all(travel.travel_s > 0 for travel in travels)


async def test_the_road_map_is_asked_by_osrms_table_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "WITHIN_S", 20.0)
    server = Osrm()
    async with serving(server.table) as url, open_travel_times(url + "/", failures()) as times:
        travels = await times.to(SEOUL, [NEAR, FAR])
    assert server.asked == [
        "/table/v1/driving/126.978000,37.566500;126.980000,37.570000;127.050000,37.600000?sources=1;2&destinations=0"
    ]
    assert [travel.estimate for travel in travels] == [Estimate.ROAD] * 2
    assert travels[1].travel_s == pytest.approx(great_circle_m(FAR, SEOUL) / 10, abs=1)


async def late(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3 * availability.WITHIN_S)
    return web.json_response({"code": "Ok", "durations": [[1]]})


def failures() -> Counter:
    return DispatchMetrics(CollectorRegistry()).road_times_failed


async def refusing(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


def saying(text: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json")

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        late,
        refusing,
        saying("<html>"),
        saying("[]"),
        saying('{"code": "NoTable"}'),
        saying('{"code": "Ok", "durations": [[1], [2], [3]]}'),
        saying('{"code": "Ok", "durations": [["soon"]]}'),
        saying('{"code": "Ok", "durations": [[-5]]}'),
        saying('{"code": "Ok", "durations": [5]}'),
        saying('{"code": "Ok", "durations": [[null]]}'),
    ],
)
async def test_a_failing_road_map_falls_back_to_the_great_circle_and_is_counted(answer: Answer) -> None:
    failed = failures()
    async with (
        serving(answer) as url,
        open_travel_times(url, failed) as times,
        open_travel_times("", failed) as instead,
    ):
        (actual,) = await times.to(SEOUL, [FAR])
        (expected,) = await instead.to(SEOUL, [FAR])
    assert actual.travel_s == expected.travel_s and actual.estimate is Estimate.GREAT_CIRCLE_INSTEAD
    (metric,) = failed.collect()
    assert sum(sample.value for sample in metric.samples if sample.name.endswith("_total")) == 1


async def test_an_unreachable_road_map_falls_back_to_the_great_circle() -> None:
    async with serving(refusing) as url:
        pass
    async with open_travel_times(url, failures()) as times:
        (actual,) = await times.to(SEOUL, [FAR])
    assert actual.estimate is Estimate.GREAT_CIRCLE_INSTEAD
