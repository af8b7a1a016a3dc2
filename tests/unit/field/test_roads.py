"""The way out by road: what a phone may ask, what a router may answer, and that without one the direction remains."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.common.errors import InvalidField
from services.common.geometry import LatLon, great_circle_m
from services.field import her_map
from services.field.her_map import DIRECTIONS, DISTANCE_M, Router, WayPoint, WayWish, parse_way_wish, way_of
from tests.support.common.ports import free_port

HOME = {"lat": 37.636, "lon": 127.2165, "direction": "south"}
WISH = parse_way_wish(HOME)


def route(*points: tuple[Any, ...], code: str = "Ok") -> dict[str, Any]:
    return {"code": code, "routes": [{"geometry": {"coordinates": [list(point) for point in points]}}]}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_way_ends_a_kilometre_away_in_the_direction(direction: str) -> None:
    end = WayWish(WISH.place, direction).end
    here, there = LatLon(*WISH.place), LatLon(*end)
    assert great_circle_m(here, there) == pytest.approx(DISTANCE_M, rel=0.01)
    assert (end.lat_deg > WISH.place.lat_deg) == ("north" in direction)
    assert (end.lon_deg > WISH.place.lon_deg + 1e-9) == ("east" in direction)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"lat": 86}, "lat"),
        ({"lat": None}, "lat"),
        ({"lat": 10**400}, "lat"),
        ({"lat": True}, "lat"),
        ({"lon": math.nan}, "lon"),
        ({"lon": "127"}, "lon"),
        ({"direction": "home"}, "direction"),
        ({"direction": 3}, "direction"),
    ],
)
def test_a_wrong_wish_is_refused_with_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        parse_way_wish(HOME | change)
    assert refused.value.field == field


def test_an_answer_that_is_no_way_is_refused() -> None:
    assert way_of(route((127.2, 37.6), (127.3, 37.5))) == [WayPoint(37.6, 127.2), WayPoint(37.5, 127.3)]
    assert len(way_of(route(*[(127.2, 37.6)] * 1_000))) == her_map.MAX_POINTS
    refused: tuple[Any, ...] = (
        None,
        [],
        {"code": "Ok"},
        {"code": "Ok", "routes": []},
        route((127.2, 37.6), code="NoRoute"),
        route((127.2, 37.6)),
        route((127.2, 37.6), (127.3,)),
        route((127.2, 37.6), ("x", 37.5)),
        route((127.2, 37.6), (127.3, 370.5)),
        route((127.2, 37.6), (math.nan, 37.5)),
        route((127.2, 37.6), (None, 37.5)),
    )
    for bad in refused:
        with pytest.raises(ValueError):
            way_of(bad)


@asynccontextmanager
async def serving(answer: dict[str, Any], status: int = 200) -> AsyncIterator[tuple[str, list[str]]]:
    """A server of OSRM's route protocol that gives one answer, and the paths that it was asked for."""
    asked: list[str] = []

    async def give(request: web.Request) -> web.StreamResponse:
        asked.append(request.path_qs)
        return web.json_response(answer, status=status)

    app = web.Application()
    app.add_routes([web.get("/route/v1/foot/{points}", give)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


async def test_the_router_gets_her_place_and_the_direction_alone() -> None:
    async with aiohttp.ClientSession() as session, serving(route((127.2, 37.6), (127.3, 37.5))) as (url, asked):
        assert len(await Router(url, session).way(WISH)) == 2
        assert asked == [
            "/route/v1/foot/127.216500,37.636000;127.216500,37.627007?overview=simplified&geometries=geojson"
        ]


async def test_without_a_router_or_its_answer_there_is_no_way() -> None:
    async with aiohttp.ClientSession() as session, serving(route((127.2, 37.6)), status=500) as (url, _):
        for address in ("", url, f"http://127.0.0.1:{free_port()}"):
            assert await Router(address, session).way(WISH) == []
