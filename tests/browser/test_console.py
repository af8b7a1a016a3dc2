"""The console in a real browser on a real mesh, during the demo: the work of duty officers, and of a reviewer afterwards.

`make test-browser` runs it; it needs Chromium and Node.js. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from services.client import demo
from services.client import mesh as meshes
from services.client.actors import Alerts
from services.common import times
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.browser.driver import HERE, Browser, browser
from tests.support.common.mesh import RunningMesh

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = HERE.parents[1]
SHOWN_WITHIN_MS = 2_000
EVIDENCE_WITHIN_S = 30.0
RINGS_CLEARED = 6
"""Rings that are cleared: three round the protected person and three round her home."""
WATCHING = ("police", "probation", "reviewer")
DEMAND = "#incidents .demand-RESPOND"
NOTE_WHEN_SHOWN = f"""new MutationObserver(() => {{
    if (!window.shown && document.querySelector("{DEMAND}")) window.shown = Date.now();
}}).observe(document.body, {{subtree: true, childList: true}})"""
VALUE_STEP = 5
LINES_AT_EACH_VALUE = f"""(slider => Array.from({{length: 1000 / {VALUE_STEP} + 1}}, (_, i) => {{
    slider.value = i * {VALUE_STEP};
    slider.dispatchEvent(new Event("input"));
    return [...document.querySelectorAll("#state-at li")].map((line) => line.textContent);
}}))(document.querySelector("#slider"))"""
"""Script that returns the lines beside the replay at each value of its slider."""
SERVICES = {"ingest", "geofence", "registry", "dispatch-probation", "dispatch-police", "dispatch-warning"}


class Played:
    """The demo up to its offers, with the pages that watch it. `end` plays the rest."""

    def __init__(self, mesh: RunningMesh, stage: demo.DemoStage, alerts: Alerts, seen: Browser) -> None:
        self.url = mesh.now.console_url
        self.stage = stage
        self.alerts = alerts
        self.browser = seen
        self.shown_ms: dict[str, int] = {}
        """Time at which the demand to respond was on each role's live page, in ms since 1970."""
        self.ended = False

    @property
    def incident_id(self) -> str:
        """Id of the demo's incident."""
        return next(seen.alert.incident_id for seen in self.alerts.seen if seen.alert.incident_id)

    async def shot(self, page: str, name: str, at: str = "body") -> None:
        """Saves a picture for the documentation, from this element on, where TANDEM_SHOTS is set."""
        if folder := os.environ.get("TANDEM_SHOTS"):
            await self.browser("eval", page=page, expression=f"document.querySelector('{at}').scrollIntoView()")
            await asyncio.sleep(3)  # the map's tiles
            await self.browser("shot", page=page, path=f"{ROOT / folder}/{name}.png")

    async def end(self) -> None:
        """Plays the demo to its end: the desks acknowledge the rest, and the wearer turns away."""
        if not self.ended:
            self.ended = True
            await self.stage.acknowledge()
            await self.stage.stand_down()

    async def review(self, page: str) -> None:
        """Opens the incident's page with its evidence, as soon as the leg has copied it."""
        await self.end()
        async with asyncio.timeout(EVIDENCE_WITHIN_S):
            while True:
                await self.browser("open", page=page, url=f"{self.url}/incidents/{self.incident_id}")
                await self.browser("click", page=page, selector="#show-evidence")
                cleared = await self.browser("text", page=page, selector="details summary")
                if len([line for line in cleared if "Ring cleared" in line or "이탈" in line]) == RINGS_CLEARED:
                    await self.browser("wait", page=page, selector="#state-at li")
                    return
                await asyncio.sleep(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def played(mesh: RunningMesh) -> AsyncIterator[Played]:
    plan = demo.new_plan()
    async with (
        browser() as seen,
        meshes.connect(mesh.now) as clients,
        demo.stage(clients, plan) as stage,
        Alerts(clients, (plan.id("order"),)) as alerts,
    ):
        playing = Played(mesh, stage, alerts, seen)
        for role, language in (("police", "en"), ("probation", "ko"), ("reviewer", "en"), ("operator", "en")):
            await seen.sign_in(role, playing.url, role, language)
        for page in WATCHING:
            await seen("wait", page=page, selector="#connection.ok")
        for page in WATCHING:
            await seen("eval", page=page, expression=NOTE_WHEN_SHOWN)
        for name, _, act in demo.STEPS:
            await act(stage)
            if name == "respond":
                break
        for page in WATCHING:
            await seen("wait", page=page, selector=DEMAND)
            playing.shown_ms[page] = await seen("eval", page=page, expression="window.shown")
        yield playing
        await playing.end()


async def test_an_incident_is_on_the_desks_pages_within_two_seconds_of_its_alert(played: Played) -> None:
    decided_ms = min(
        times.from_timestamp(seen.alert.decided_at)
        for seen in played.alerts.seen
        if seen.alert.demand == geometry_pb2.RESPOND
    )
    for role in ("police", "probation"):
        late_ms = played.shown_ms[role] - decided_ms
        print(f"{role}: shown {late_ms} ms after the alert")
        assert 0 <= late_ms <= SHOWN_WITHIN_MS
    assert played.shown_ms["reviewer"] - decided_ms > 0
    title = await played.browser(
        "eval", page="police", expression="new Promise(r => setTimeout(() => r(document.title), 750))"
    )
    assert title
    await played.shot("police", "console-live")
    await played.shot("probation", "console-live-probation")


async def test_the_map_shows_probation_the_wearer_alone(played: Played) -> None:
    messages = await asyncio.gather(*(_stream_of(played, role) for role in ("police", "probation")))
    police, probation = ({target["id"].partition("/")[2] for target in message["targets"]} for message in messages)
    assert probation == {played.stage.wearer_id}
    assert police >= {played.stage.wearer_id, played.stage.person_id, played.stage.home_destination}


async def _stream_of(played: Played, page: str) -> dict[str, Any]:
    """Opens a new connection and returns the first message with targets."""
    expression = """new Promise((resolve) => {
        const source = new EventSource("/stream");
        const all = {targets: []};
        source.onmessage = (event) => {
            all.targets.push(...JSON.parse(event.data).targets);
            if (all.targets.length) { source.close(); resolve(all); }
        };
    })"""
    message: dict[str, Any] = await played.browser("eval", page=page, expression=expression)
    return message


async def test_an_offer_is_acknowledged_with_the_keyboard_alone(played: Played) -> None:
    await played.browser("press", page="police", key="j")
    await played.browser("press", page="police", key="a")
    await played.browser("wait", page="police", selector="#incidents li:not(:has(.take)) .state-ACKNOWLEDGED")
    listed = await played.stage.clients.legs["police"].dispatch.ListIncidents(
        dispatch_pb2.ListIncidentsRequest(incident_id=played.incident_id),
        metadata=played.stage.clients.identity("spiffe://tandem/reviewer/test"),
    )
    acknowledged_by = [
        assignment.acknowledged_by
        for assignment in listed.incidents[0].assignments
        if assignment.leg == 2 and assignment.acknowledged_by
    ]
    # The key accepts for the person and for her home.
    assert acknowledged_by == 2 * ["spiffe://npa/desk/console/police-1"]


async def test_an_assignment_is_answered_to_its_close_with_the_keyboard_alone(played: Played) -> None:
    """The probation desk acknowledges on the live page, then sends a unit by radio, proceeds and closes on the incident's page, by Tab,
    Enter and letters."""
    press = partial(played.browser, "press", page="probation")
    await press(key="j")
    await press(key="a")
    await played.browser("wait", page="probation", selector="#incidents [data-leg=probation] .state-ACKNOWLEDGED")
    await press(key="Enter")
    own = ".leg-probation article"
    await played.browser("wait", page="probation", selector=f"{own} .answers")
    await _tab_to(played, f"{own} .answers details.sending summary")
    await press(key="Enter")
    await _tab_to(played, f"{own} input[name=unit_name]")
    for letter in "team7":
        await press(key=letter)
    await press(key="Enter")
    await played.browser("wait", page="probation", selector=f"{own} .state-DISPATCHED")
    sent = " ".join(await played.browser("text", page="probation", selector=f"{own} .unit-offers"))
    assert "무전 지령: team7, probation-1, " in sent
    for state in ("EN_ROUTE", "ON_SCENE"):
        await played.browser("wait", page="probation", selector=f"{own} .answers")
        await _tab_to(played, f"{own} .answers button.main")
        await press(key="Enter")
        await played.browser("wait", page="probation", selector=f"{own} .state-{state}")
        hash_ = await played.browser("eval", page="probation", expression="location.hash")
        assert hash_.startswith("#to-"), "Tab must reach the next step first"
    await _tab_to(played, f"{own} .answers details:first-of-type summary")
    await press(key="Enter")
    found = await played.browser("axe", page="probation")
    assert [finding for finding in found if finding["impact"] in ("serious", "critical")] == []
    await played.shot("probation", "console-answers", at="#h-timeline")
    await _tab_to(played, f"{own} select[name=cause]")
    await press(key="End")  # the last cause, OTHER, which needs a note
    await _tab_to(played, f"{own} input[name=note]")
    for letter in "gone":
        await press(key=letter)
    await press(key="Enter")
    await played.browser("wait", page="probation", selector=f"{own} .state-CLOSED")
    listed = await played.stage.clients.legs["probation"].dispatch.ListIncidents(
        dispatch_pb2.ListIncidentsRequest(incident_id=played.incident_id),
        metadata=played.stage.clients.identity("spiffe://moj/desk/test"),
    )
    (his,) = [assignment for assignment in listed.incidents[0].assignments if assignment.leg == 1]
    assert (his.close_cause, his.close_note) == (dispatch_pb2.OTHER, "gone")
    assert his.acknowledged_by == "spiffe://moj/desk/console/probation-1"


async def _tab_to(played: Played, selector: str) -> None:
    """Presses Tab until the element has the focus."""
    for _ in range(40):
        await played.browser("press", page="probation", key="Tab")
        if await played.browser("eval", page="probation", expression=f"document.activeElement.matches('{selector}')"):
            return
    raise AssertionError(f"Tab doesn't reach {selector}")


async def test_a_review_shows_both_legs_and_a_whole_trace(played: Played) -> None:
    await played.review("reviewer")
    legs = await played.browser("text", page="reviewer", selector=".leg")
    for leg, subject in zip(
        legs, (played.stage.wearer_id, played.stage.person_id, played.stage.person_id), strict=True
    ):
        assert (subject in leg and "Accepted" in leg) or "Delivered" in leg
    rows = await played.browser(
        "eval",
        page="reviewer",
        expression="[...document.querySelectorAll('[data-span]')].map((row) => ({...row.dataset}))",
    )
    assert {row["service"] for row in rows} == SERVICES
    assert [row for row in rows if int(row["us"]) < 0 or "orphan" in row] == []
    seen = await played.browser("text", page="reviewer", selector="section[aria-labelledby=h-ledger] tbody tr")
    assert any("spiffe://tandem/service/dispatch-police" in row and "Share of locations began" in row for row in seen)
    await played.shot("reviewer", "console-review")
    await played.shot("reviewer", "console-trace", at="#h-trace")


async def test_the_slider_replays_the_approach_and_the_response_to_its_end(played: Played) -> None:
    await played.review("police")
    moments = await played.browser("eval", page="police", expression=LINES_AT_EACH_VALUE)
    distances = [
        int(line.partition(" m → ")[0].rpartition(" ")[2])
        for lines in moments
        for line in lines
        if line.startswith("Wearer")
    ]
    nearest = distances.index(min(distances))
    assert distances[nearest] < 200 and distances[0] > 1_000 and distances[-1] > 1_000
    assert 0 < nearest < len(distances) - 1
    shown = [[line for line in lines if line.startswith(("Police →", "Probation →", "Warning →"))] for lines in moments]
    assert any(": Offered" in line for lines in shown for line in lines)
    # The last position came before the legs stood down, and the replay must continue after it.
    assert {line.partition(" →")[0] for line in shown[-1]} == {"Police", "Probation", "Warning"}
    assert all(line.endswith((": Stood down", ": Closed")) for line in shown[-1]), shown[-1]
    ended = next(i for i, lines in enumerate(shown) if lines == shown[-1])
    assert ended < len(shown) - 1
    await played.browser("eval", page="police", expression=_slide_to(nearest * VALUE_STEP))
    await played.shot("police", "console-replay", at="#h-replay")
    await played.browser("eval", page="police", expression=_slide_to(1_000))
    await played.shot("police", "console-replay-end", at="#h-replay")


def _slide_to(value: int) -> str:
    return f"(s => {{ s.value = {value}; s.dispatchEvent(new Event('input')); }})(document.querySelector('#slider'))"


async def test_probation_sees_no_place_no_figure_and_no_other_track(played: Played) -> None:
    await played.review("probation")
    page = await played.browser(
        "eval", page="probation", expression="JSON.parse(document.querySelector('#page').textContent).replay"
    )
    assert page["places"] == [] and {track["wearer"] for track in page["tracks"]} == {True}
    text = await played.browser("eval", page="probation", expression="document.documentElement.outerHTML")
    assert played.stage.plan.id("app") not in text
    assert await played.browser("text", page="probation", selector="details[open] dd") != []


async def test_no_page_has_a_serious_finding_and_no_request_leaves_the_machine(played: Played) -> None:
    await played.review("police")
    found = {"review": await played.browser("axe", page="police")}
    for page, path in (
        *(("police", path) for path in ("/", "/search", "/statistics", "/reviews", "/devices")),
        ("operator", "/devices"),
        ("operator", "/reporting"),
        ("operator", f"/reporting/{played.stage.plan.id('tag')}"),
        ("stranger", "/sign-in"),
    ):
        assert await played.browser("open", page=page, url=f"{played.url}{path}", language="en") == 200
        if path == "/":
            await played.browser("wait", page=page, selector="#connection.ok")
        if path == "/statistics":
            await played.browser("wait", page=page, selector="#spread")
            await played.shot(page, "console-statistics")
        found[f"{page} {path}"] = await played.browser("axe", page=page)
    print({page: [(finding["id"], finding["impact"]) for finding in each] for page, each in found.items()})
    grave = {
        page: [finding for finding in each if finding["impact"] in ("serious", "critical")]
        for page, each in found.items()
    }
    assert {page: each for page, each in grave.items() if each} == {}
    seen = await played.browser("seen")
    print(f"origins: {seen['origins']}")
    assert seen["origins"] == [played.url]
    assert seen["faults"] == []
