"""Replay of an incident page in a real browser, with known positions, alerts and steps: no mesh, no clock."""

from __future__ import annotations

import html
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from services.common.observability.metrics import unexposed
from services.common.web.server import served
from services.console.pages.assets import STATIC
from services.console.pages.texts import Texts
from tests.browser.driver import CHROMIUM, browser

pytestmark = [
    pytest.mark.browser,
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
S = 1_000
BEGAN_MS = 1_800_000_000_000
LAST_POSITION, LAST_ALERT, OFFERED, ACCEPTED, STOOD_DOWN = 20 * S, 15 * S, 60 * S, 90 * S, 600 * S
"""Times of a drill whose positions end before the first offer, in ms after the first position."""
AROUND = 120 * S
PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="/static/app.css"><body class="review">
<div id="map" class="replay"></div><button id="play"></button><input type="range" id="slider" min="0" max="1000" value="1000" step="1">
<output id="moment"></output><ul id="state-at"></ul>
<script type="application/json" id="page">{page}</script><script type="module" src="/static/replay.js"></script>"""


def page_of(steps: list[dict[str, Any]], alerts: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the data of the incident page."""
    points = [[BEGAN_MS + at, 127.0, 37.5 + at / 1e8, 5] for at in range(0, LAST_POSITION + 1, S)]
    return {
        "csrf": "",
        "role": "police",
        "texts": Texts("en").island(),
        "tiles": "/static/korea.pmtiles",
        "language": "en",
        "replay": {
            "tracks": [{"device": "tag-1", "subject": "W-1", "wearer": True, "points": points}],
            "places": [{"id": "home", "lon": 127.0, "lat": 37.5, "radius": 20}],
            "rings": [100],
            "alerts": alerts,
        },
        "steps": steps,
    }


def step(leg: str, *states: tuple[int, str]) -> dict[str, Any]:
    return {"leg": leg, "subject": "P-1", "unit": "", "states": [[BEGAN_MS + at, state] for at, state in states]}


STEPS = [
    step("police", (OFFERED, "OFFERED"), (ACCEPTED, "ACKNOWLEDGED"), (STOOD_DOWN - S, "STOOD_DOWN")),
    step("probation", (OFFERED, "OFFERED"), (OFFERED + S, "ESCALATED"), (STOOD_DOWN, "STOOD_DOWN")),
]
ALERT = {"at": BEGAN_MS + LAST_ALERT, "kind": "RING_ENTERED", "ring": 100}


@asynccontextmanager
async def shown(page: dict[str, Any]) -> AsyncIterator[Any]:
    """Opens a browser on a page. Yields a function that moves the slider and returns the time and the lines beside the map."""

    async def document(request: web.Request) -> web.Response:
        text = PAGE.format(page=html.escape(json.dumps(page), quote=False))
        return web.Response(text=text, content_type="text/html")

    async def ask_static(request: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / request.match_info["name"])

    routes = [web.get("/", document), web.get("/static/{name}", ask_static)]
    async with served("replay", routes, "127.0.0.1", port=0, closed=unexposed().http_closed) as port, browser() as seen:
        assert await seen("open", page="one", url=f"http://127.0.0.1:{port}/", language="en") == 200
        await seen("wait", page="one", selector="#state-at li")

        async def at(value: float) -> tuple[str, list[str]]:
            script = f"""(slider => {{
                slider.value = {value};
                slider.dispatchEvent(new Event("input"));
                const lines = [...document.querySelectorAll("#state-at li")].map((line) => line.textContent);
                return [document.querySelector("#moment").textContent, lines];
            }})(document.querySelector("#slider"))"""
            moment, lines = await seen("eval", page="one", expression=script)
            return moment, lines

        yield at


def value_of(at: int) -> float:
    """Returns the slider's value at a time, by the expected length of the replay."""
    return 1_000 * at / (STOOD_DOWN + AROUND)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
async def test_a_replay_lasts_until_two_minutes_after_the_last_step_after_positions_end() -> None:
    async with shown(page_of(STEPS, [ALERT])) as at:
        first, lines = await at(0)
        assert not any("→" in line and "Police" in line for line in lines)
        _, lines = await at(value_of(OFFERED + S // 2) + 0.5)
        assert {"Police → P-1: Offered", "Probation → P-1: Offered"} & set(lines)
        _, lines = await at(value_of(ACCEPTED) + 1)
        assert "Police → P-1: Accepted" in lines and "Probation → P-1: Escalated" in lines
        last, lines = await at(1_000)
        assert "Police → P-1: Stood down" in lines and "Probation → P-1: Stood down" in lines
        assert any(f" {(STOOD_DOWN + AROUND - LAST_POSITION) // S} s, ± 5 m" in line for line in lines)
        assert seconds(last) - seconds(first) == (STOOD_DOWN + AROUND) // S


def seconds(moment: str) -> int:
    """Returns the second of the day."""
    hours, minutes, rest = (float(part) for part in moment.split(" ")[-1].split(":"))
    return round(3_600 * hours + 60 * minutes + rest)
