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
from tests.browser.driver import CHROMIUM, Browser, browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.usefixtures("packages"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
S = 1_000
BEGAN_MS = 1_800_000_000_000
LAST_POSITION = 20 * S
LAST_ALERT = 15 * S
OFFERED = 60 * S
ACCEPTED = 90 * S
STOOD_DOWN = 600 * S
"""Times of a drill whose positions end before the first offer, in ms after the first position."""
AROUND = 120 * S
PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="/static/style.css"><body class="review">
<div id="map" class="replay"></div><svg id="marks" viewBox="0 0 1000 22"></svg><button id="play"></button>
<button id="event-before"></button><button id="event-after"></button>
<select id="speed"><option value="fit" selected></option><option value="1"></option><option value="60"></option></select>
<input type="range" id="slider" min="0" max="1000" value="0" step="1">
<output id="moment"></output><ul id="state-at"></ul><ol id="events"></ol>
<script type="application/json" id="page">{page}</script><script type="module" src="/static/replay.js"></script>"""


def page_of(
    steps: list[dict[str, Any]],
    alerts: list[dict[str, Any]],
    *,
    has_positions: bool = True,
    units: Any = (),
    late: Any = (),
) -> dict[str, Any]:
    """Returns the data of the incident page."""
    points = [[BEGAN_MS + at, 127.0, 37.5 + at / 1e8, 5] for at in range(0, LAST_POSITION + 1, S)]
    return {
        "csrf": "",
        "role": "police",
        "texts": Texts("en").island(),
        "tiles": "/static/korea.pmtiles",
        "language": "en",
        "replay": {
            "tracks": [{"device": "tag-1", "subject": "W-1", "wearer": True, "points": points}]
            if has_positions
            else [],
            "units": list(units),
            "places": [{"id": "home", "lon": 127.0, "lat": 37.5, "radius": 20}],
            "rings": [100],
            "alerts": alerts,
        },
        "steps": steps,
        "late": list(late),
    }


def step(leg: str, *states: tuple[int, str]) -> dict[str, Any]:
    return {"leg": leg, "subject": "P-1", "unit": "", "states": [[BEGAN_MS + at, state] for at, state in states]}


STEPS = [
    step("police", (OFFERED, "OFFERED"), (ACCEPTED, "ACKNOWLEDGED"), (STOOD_DOWN - S, "STOOD_DOWN")),
    step("probation", (OFFERED, "OFFERED"), (OFFERED + S, "ESCALATED"), (STOOD_DOWN, "STOOD_DOWN")),
]
ALERT = {"at": BEGAN_MS + LAST_ALERT, "kind": "RING_ENTERED", "phase": "BEGUN", "ring": 100}


@asynccontextmanager
async def opened(page: dict[str, Any]) -> AsyncIterator[Browser]:
    """Opens a browser on a page, which is called `one`."""

    async def document(request: web.Request) -> web.Response:
        text = PAGE.format(page=html.escape(json.dumps(page), quote=False))
        return web.Response(text=text, content_type="text/html")

    async def ask_static(request: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / request.match_info["name"])

    routes = [web.get("/", document), web.get("/static/{name}", ask_static)]
    async with served("replay", routes, "127.0.0.1", port=0, closed=unexposed().http_closed) as port, browser() as seen:
        assert await seen("open", page="one", url=f"http://127.0.0.1:{port}/", language="en") == 200
        await seen("wait", page="one", selector="#events li")
        yield seen


@asynccontextmanager
async def shown(page: dict[str, Any]) -> AsyncIterator[Any]:
    """Opens a browser on a page. Yields a function that moves the slider and returns the time and the lines beside the map."""
    async with opened(page) as seen:

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
        assert any("position 12 min old, within 5 m" in line for line in lines)
        assert seconds(last) - seconds(first) == (STOOD_DOWN + AROUND) // S


def seconds(moment: str) -> int:
    """Returns the second of the day."""
    hours, minutes, rest = (float(part) for part in moment.split(" ")[-1].split(":"))
    return round(3_600 * hours + 60 * minutes + rest)


MOMENT = "document.querySelector('#moment').textContent"
JUMP_TO_THE_END = """(slider => {
    document.querySelector("#speed").value = "fit";
    slider.value = 995;
    slider.dispatchEvent(new Event("input"));
})(document.querySelector("#slider"))"""


def until(condition: str, result: str) -> str:
    """Returns a script that waits for a condition and returns a result."""
    return f"""new Promise((resolve) => {{
        const timer = setInterval(() => {{ if ({condition}) {{ clearInterval(timer); resolve({result}); }} }}, 20);
    }})"""


LATE = {
    "name": "expected_PERSON_ANSWERS",
    "leg": "police",
    "subject": "P-1",
    "due": BEGAN_MS + OFFERED + 30 * S,
    "met": None,
}
UNIT = {"unit": "car-7", "points": [[BEGAN_MS + OFFERED + n * 10 * S, 127.02 - n / 1_000, 37.51] for n in range(4)]}
AMENDED = {"at": BEGAN_MS + 7_200 * S, "kind": "ACCOUNT_AMENDED", "phase": "BEGUN", "ring": 100}


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
async def test_a_replay_opens_at_its_first_decision_and_has_a_mark_for_each_alert_step_and_missed_time() -> None:
    page = page_of(STEPS, [ALERT], units=[UNIT], late=[LATE])
    async with opened(page) as seen:
        first = await seen("eval", page="one", expression=MOMENT)
        await seen("click", page="one", selector="#event-before")
        began = await seen("eval", page="one", expression=MOMENT)
        assert seconds(first) - seconds(began) == LAST_ALERT // S, "before the first decision there is the way to it"
        kinds = await seen(
            "eval", page="one", expression="[...document.querySelectorAll('.mark')].map((m) => m.classList[1])"
        )
        assert sorted(kinds) == ["mark-alert", "mark-late", *["mark-step"] * 6]
        listed = await seen("text", page="one", selector="#events li")
        assert any("Ring entered 100 m" in line for line in listed) and any(
            "Probation → P-1: Escalated" in line for line in listed
        )
        late = next(n for n, line in enumerate(listed) if "was due and had not come" in line)
        await seen("click", page="one", selector=f"#events li:nth-child({late + 1}) button")
        overdue = await seen("text", page="one", selector="#state-at .bad")
        assert overdue == ["Police → P-1: answered by a person was due and had not come"]
        lines = await seen("text", page="one", selector="#state-at li")
        assert any("car-7: position " in line for line in lines)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
async def test_the_speed_can_be_changed_while_a_replay_runs_and_it_stops_at_its_end() -> None:
    async with opened(page_of(STEPS, [ALERT])) as seen:
        await seen("eval", page="one", expression="document.querySelector('#speed').value = '60'")
        await seen("click", page="one", selector="#event-after")
        before = await seen("eval", page="one", expression=MOMENT)
        await seen("click", page="one", selector="#play")
        # At 60 times the speed, half a minute passes in half a second; a slow browser takes longer, never less.
        await seen("eval", page="one", expression=until(f"{MOMENT} > {json.dumps(before)}", "1"))
        await seen("eval", page="one", expression=JUMP_TO_THE_END)
        ended = until(
            "document.querySelector('#play').textContent === 'Play'", "document.querySelector('#slider').value"
        )
        assert await seen("eval", page="one", expression=ended) == "1000"


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
async def test_without_positions_or_a_stand_down_and_with_an_amended_account_the_replay_shows_what_is_left() -> None:
    open_steps = [step("police", (OFFERED, "OFFERED"), (ACCEPTED, "ACKNOWLEDGED"))]
    async with shown(page_of(open_steps, [ALERT, AMENDED], has_positions=False)) as at:
        first, _ = await at(0)
        last, lines = await at(1_000)
        assert lines[0] == "Police → P-1: Accepted", "alerts and steps are replayed without any position"
        # Two minutes before the first alert to two after the last step; the amendment two hours later doesn't stretch it.
        assert seconds(last) - seconds(first) == (ACCEPTED + AROUND) // S - (LAST_ALERT - AROUND) // S


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
async def test_the_end_of_an_event_is_named_as_such() -> None:
    panic = {"at": BEGAN_MS + LAST_ALERT, "kind": "PANIC", "phase": "BEGUN", "ring": 0}
    cancelled = {"at": BEGAN_MS + OFFERED, "kind": "PANIC", "phase": "OVER", "ring": 0}
    async with opened(page_of(STEPS, [panic, cancelled])) as seen:
        marks = await seen("text", page="one", selector="#events .event-alert")
        assert [mark.partition(" ")[2] for mark in marks] == ["Panic call", "Panic call: over"]
        await seen("click", page="one", selector="#events li:last-child button")
        assert any("Panic call: over" in line for line in await seen("text", page="one", selector="#state-at li"))
