"""The review page of a demo, a drill that nobody answers and a chase: replay and trace end with the last step, late steps are marked.

`make test-browser` runs it; it needs Chromium and Node.js. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from services.client import demo, outcome
from services.client import mesh as meshes
from services.client.calls import call
from services.client.drill import Drill
from services.common import times
from services.common.failure import CommandFailed
from services.court.evidence import bundle
from services.court.report import facts as report_facts
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2, roster_pb2_grpc
from tests.browser.driver import HERE, Browser, browser
from tests.support.common.mesh import RunningMesh, tandem
from tests.support.console.review_questions import ANSWERS
from tests.support.dispatch.chase import HOME, PATIENCE_S, UNITS, Chase, between, chase

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = HERE.parents[1]
EVIDENCE_WITHIN_S = 60.0
UNANSWERED_FOR_S = 34.0
"""Longer than a person has for an answer, 30 s, and shorter than the drill's second escalation, 60 s later."""
AROUND_MS = 120_000
STATE = dispatch_pb2.AssignmentState
PAGE = "JSON.parse(document.querySelector('#page').textContent)"
ROWS = """[...document.querySelectorAll('#waterfall tbody tr')].map((row) => ({
    ...row.dataset, text: row.querySelector('th').textContent, hidden: row.hidden, service: row.dataset.service}))"""
EXPECTED = (
    "[...document.querySelectorAll('.expected tbody tr')].map((row) => ({...row.dataset, text: row.textContent}))"
)
AT_THE_END = """(slider => {
    slider.value = 1000;
    slider.dispatchEvent(new Event("input"));
    return [...document.querySelectorAll("#state-at li")].map((line) => line.textContent);
})(document.querySelector("#slider"))"""


class Reviewer:
    """A reviewer's browser on the mesh."""

    def __init__(self, mesh: RunningMesh, clients: meshes.Clients, seen: Browser) -> None:
        self.mesh = mesh
        self.clients = clients
        self.browser = seen

    async def eval(self, expression: str) -> Any:
        return await self.browser("eval", page="reviewer", expression=expression)

    async def open(self, incident_id: str) -> None:
        """Opens an incident with its replay, once its last step is in the trace and in the evidence."""
        url = f"{self.mesh.now.console_url}/incidents/{incident_id}"
        async with asyncio.timeout(EVIDENCE_WITHIN_S):
            while True:
                await self.browser("open", page="reviewer", url=url)
                await self.browser("click", page="reviewer", selector="#show-evidence")
                await self.browser("wait", page="reviewer", selector="#h-trace")
                ended = await self.eval("document.querySelector('#not-over') === null")
                loaded = await self.eval("document.querySelectorAll('#events li').length")
                if ended and loaded and await self.all_over():
                    return
                await asyncio.sleep(1)

    async def all_over(self) -> bool:
        """Whether each assignment of the opened incident is over in its trace."""
        page = await self.eval(PAGE)
        steps = [step for step in page["steps"] if step["states"]]
        # A notice, which asks nobody to act, has no end of its own.
        open_ = [step for step in steps if step["states"][-1][1] not in ("STOOD_DOWN", "CLOSED", "NOTIFIED")]
        return bool(steps) and not open_ and bool(await self.eval("document.querySelectorAll('#waterfall').length"))

    async def shot(self, name: str, at: str) -> None:
        """Saves a picture, from this element on, where TANDEM_SHOTS is set."""
        if folder := os.environ.get("TANDEM_SHOTS"):
            await self.eval(f"document.querySelector('{at}').scrollIntoView()")
            await asyncio.sleep(3)  # the map's tiles
            await self.browser("shot", page="reviewer", path=f"{ROOT / folder}/{name}.png")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reviewer(mesh: RunningMesh) -> AsyncIterator[Reviewer]:
    async with browser() as seen, meshes.connect(mesh.now) as clients:
        await seen.sign_in("reviewer", mesh.now.console_url, "reviewer", "en")
        await seen.sign_in("korean", mesh.now.console_url, "reviewer", "ko")
        yield Reviewer(mesh, clients, seen)


class Played(NamedTuple):
    """Ids of the incidents of the demo, and of a drill that no desk answered."""

    demo: str
    drill: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def played(reviewer: Reviewer) -> Played:
    """Plays the whole demo, whose wearer takes a minute to drive away, and meanwhile leaves a drill unanswered."""
    return Played(*await asyncio.gather(play_demo(reviewer), leave_drill(reviewer)))


async def play_demo(reviewer: Reviewer) -> str:
    """Plays the whole demo and returns the id of its incident. On a slow machine a device's silence opens another one."""
    plan = demo.new_plan()
    async with demo.stage(reviewer.clients, plan) as stage:
        for _, _, act in demo.STEPS:
            await act(stage)
        await stage.acknowledge()
        await stage.stand_down()
    return next(found.incident_id for found in await outcome.read(reviewer.clients, {stage.order_id}) if found.responds)


async def leave_drill(reviewer: Reviewer) -> str:
    """Runs a drill that no desk answers, and returns the id of its incident."""
    with pytest.raises(CommandFailed):
        await Drill(reviewer.clients, False, UNANSWERED_FOR_S).run()
    return next(found.incident_id for found in await outcome.read(reviewer.clients) if found.exercise)


async def drive_chase(reviewer: Reviewer) -> str:
    """Plays a chase to a protected person's home: a police unit sets out, reports its way, and arrives."""
    async with chase(reviewer.mesh) as chased:
        for leg in ("probation", "police"):
            await chased.put_roster(leg)
        person, home, _ = chased.destinations
        await chased.come_home()
        his = await chased.acknowledged("probation", chased.wearer_id)
        # The first offer waits for nothing, so the unit's travel time comes with the position of her home.
        hers = await chased.until(
            "police",
            "the expected arrival",
            lambda a: a.subject_id == home and a.HasField("acknowledged_at") and a.HasField("arrival_due_at"),
        )
        await chased.acknowledged("police", person)
        await ride(chased, hers)
        await chased.end_order()
        for leg, subject_id in (("probation", chased.wearer_id), ("police", person), ("police", home)):
            await chased.until(
                leg,
                "the end",
                lambda a, to=subject_id: a.subject_id == to and a.state == STATE.STOOD_DOWN,  # type: ignore[misc]
            )
        return his.incident_id


async def ride(chased: Chase, assignment: dispatch_pb2.Assignment) -> None:
    """Moves the police unit of an assignment to her home, with a report of its position at each step."""
    roster = roster_pb2_grpc.RosterServiceStub(await chased.channel("dispatch-police"))
    me, unit_id = chased.identity("police"), assignment.choice.unit_id
    stub = chased.clients.legs["police"].dispatch
    for point in between(UNITS["police"][unit_id], HOME, 4):
        at = times.to_timestamp(chased.clients.clock.now_ms())
        report = roster_pb2.ReportUnitRequest(unit_id=unit_id, status=roster_pb2.AVAILABLE, at=at)
        report.position.lat_deg, report.position.lon_deg = point
        await call(roster.ReportUnit, report, me)
    for state in (STATE.DISPATCHED, STATE.EN_ROUTE, STATE.ON_SCENE):
        await call(stub.Progress, dispatch_pb2.ProgressRequest(assignment_id=assignment.assignment_id, state=state), me)
    await chased.until(
        "police",
        "the arrival",
        lambda a: a.assignment_id == assignment.assignment_id and a.state == STATE.ON_SCENE,
    )


async def check_replay(reviewer: Reviewer) -> dict[str, Any]:
    """Checks that the replay opens at the first decision and ends two minutes after the last step. Returns the page's data."""
    page: dict[str, Any] = await reviewer.eval(PAGE)
    steps = [at for step in page["steps"] for at, _ in step["states"]]
    alerts = [alert["at"] for alert in page["replay"]["alerts"]]
    shown = await reviewer.eval("document.querySelector('#moment').textContent")
    assert shown == await time_of_day(reviewer, min(alerts)), "the first decision"
    lines = await reviewer.eval(AT_THE_END)
    assert await reviewer.eval("document.querySelector('#moment').textContent") == await time_of_day(
        reviewer, max(*steps, *alerts) + AROUND_MS
    )
    # The last state of each destination is shown, that of the last step included.
    assert sum(line.endswith((": Stood down", ": Closed", ": Notified")) for line in lines) == sum(
        bool(step["states"]) for step in page["steps"]
    )
    return page


async def time_of_day(reviewer: Reviewer, ms: int) -> str:
    """Formats a time as the page does."""
    format_ = "new Intl.DateTimeFormat('en-GB', {timeZone: 'Asia/Seoul', timeStyle: 'medium'})"
    return str(await reviewer.eval(f"{format_}.format({ms})"))


async def check_trace(reviewer: Reviewer, page: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Checks that the trace ends with the last step and marks what was late. Returns its rows and the expected times."""
    rows, expected = await reviewer.eval(ROWS), await reviewer.eval(EXPECTED)
    stood_down = [row for row in rows if "Stood down" in row["text"]]
    assert len(stood_down) == sum(step["states"][-1][1] == "STOOD_DOWN" for step in page["steps"] if step["states"])
    table = "document.querySelector('#waterfall').dataset"
    end_us = int(await reviewer.eval(f"{table}.start")) + int(await reviewer.eval(f"{table}.length"))
    last_ms = max(at for step in page["steps"] for at, _ in step["states"])
    assert end_us // 1000 == last_ms, "the trace ends with the last step"
    late = [row for row in expected if row["outcome"] in ("LATE", "MISSED")]
    marked = [row for row in rows if "late" in row]
    assert bool(late) == bool(marked)
    for row in marked:
        assert " late" in row["text"] or "not within" in row["text"], row["text"]
    for row in rows:
        if "escalation" in row:
            assert "Escalated" in row["text"] and "Received" not in row["text"]
    return rows, expected


async def check_tools(reviewer: Reviewer, rows: list[dict[str, Any]]) -> None:
    """Folds, filters and zooms the waterfall."""

    async def visible() -> list[dict[str, Any]]:
        return [row for row in await reviewer.eval(ROWS) if not row["hidden"]]

    async def press(selector: str) -> None:
        await reviewer.browser("click", page="reviewer", selector=selector)

    assert len(await visible()) == len(rows)
    await press("#fold-all")
    assert len(await visible()) < len(rows) / 2
    await press("#unfold-all")
    await press("#waterfall-tools input[value=police]")
    assert {row["leg"] for row in await visible()} == {row["leg"] for row in rows} - {"police"}
    await press("#waterfall-tools input[value=police]")
    await press("#late-only")
    assert all("late" in row for row in await visible())
    await press("#late-only")
    box = "document.querySelector('#waterfall .bars svg').getAttribute('viewBox')"
    whole = await reviewer.eval(box)
    await press("#zoom-in")
    assert (whole, await reviewer.eval(box)) == ("0 0 1000 12", "250 0 500 12")
    await press("#zoom-whole")
    assert await reviewer.eval(box) == whole


async def check_maps(reviewer: Reviewer, incident_id: str, page: dict[str, Any], folder: Path) -> None:
    """Checks that the maps of the document for a court are drawn of the positions that the replay shows."""
    command = ("report", incident_id, "--dir", str(reviewer.mesh.folder), "--out", str(folder / "report.pdf"))
    grounds = ("--legal-basis", "STALKING_9_1_3_2", "--recipient", "spiffe://npa/desk/seoul", "--reviewer", "lee")
    made = await asyncio.to_thread(tandem, *command, *grounds)
    assert made.returncode == 0, made.stderr
    verified = bundle.verify_bundle((folder / "report.tar").read_bytes(), None)
    devices = report_facts.of_bundle(verified).devices
    documented = {
        device.device_id: {(fix.time_ms, round(fix.lon_deg, 6), round(fix.lat_deg, 6)) for fix in device.fixes}
        for device in devices
        if device.fixes
    }
    replayed = {
        track["device"]: {(at, round(lon, 6), round(lat, 6)) for at, lon, lat, *_ in track["points"]}
        for track in page["replay"]["tracks"]
    }
    assert documented == replayed and documented


async def check_answers(reviewer: Reviewer, incident_id: str) -> None:
    """Checks that the opened page answers each question of a reviewer, and prints how many parts each answer has."""
    counts = {
        question: await reviewer.eval(f"document.querySelectorAll({json.dumps(selector)}).length")
        for question, selector in ANSWERS.items()
    }
    print("\n".join(f"{count:3} {question}" for question, count in counts.items()))
    assert [question for question, count in counts.items() if not count] == []
    is_exercise = await reviewer.eval("document.querySelector('[aria-labelledby=h-incident] .exercise') !== null")
    trace = await asyncio.to_thread(tandem, "trace", incident_id, "--dir", str(reviewer.mesh.folder))
    print(trace.stdout)
    assert is_exercise == ("exercise" in trace.stdout.splitlines()[0])


async def test_the_demo_is_replayed_to_its_end_and_its_trace_can_be_folded_and_filtered(
    reviewer: Reviewer, played: Played
) -> None:
    await reviewer.open(played.demo)
    rows, expected = await check_trace(reviewer, await check_replay(reviewer))
    assert {row["expected"] for row in expected} >= {"PERSON_ANSWERS", "PERSON_WARNED", "WARNING_RECEIVED"}
    await check_answers(reviewer, played.demo)
    await check_tools(reviewer, rows)
    found = await reviewer.browser("axe", page="reviewer")
    assert [finding for finding in found if finding["impact"] in ("serious", "critical")] == []


async def test_a_drill_that_nobody_answers_shows_its_escalations_and_what_did_not_come(
    reviewer: Reviewer, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    incident_id = played.drill
    await reviewer.open(incident_id)
    page = await check_replay(reviewer)
    rows, expected = await check_trace(reviewer, page)
    unanswered = {row["leg"] for row in expected if row["expected"] == "PERSON_ANSWERS" and row["outcome"] == "MISSED"}
    assert unanswered == {"probation", "police"}
    await check_answers(reviewer, incident_id)
    escalations = [row for row in rows if "escalation" in row]
    assert {row["leg"] for row in escalations} >= unanswered
    assert all("late" in row for row in escalations)
    states = {state for step in page["steps"] for _, state in step["states"]}
    assert "ESCALATED" in states and {late["leg"] for late in page["late"]} >= unanswered
    assert len(await reviewer.browser("text", page="reviewer", selector=".mark-late")) == len(page["late"])
    history = await reviewer.browser("text", page="reviewer", selector=".history .state-ESCALATED")
    assert len(history) == len(escalations) and set(history) == {"Escalated"}
    await reviewer.browser("open", page="korean", url=f"{reviewer.mesh.now.console_url}/incidents/{incident_id}")
    verdicts = await reviewer.browser("text", page="korean", selector=".expected .verdict-MISSED")
    assert len(verdicts) == sum(row["outcome"] == "MISSED" for row in expected)
    assert set(verdicts) == {"기한까지 이행 없음"}
    monkeypatch.setenv("COLUMNS", "80")
    printed = await asyncio.to_thread(tandem, "trace", incident_id, "--dir", str(reviewer.mesh.folder))
    print(printed.stdout)
    lines = printed.stdout.splitlines()
    assert printed.returncode == 0 and max(map(len, lines)) <= 80, printed.stderr
    assert sum(line.endswith("DID NOT COME") for line in lines) == sum(row["outcome"] == "MISSED" for row in expected)
    assert sum(line.endswith(" escalated") for line in lines) == len(escalations)
    await reviewer.shot("review-late", "#h-trace")


async def test_a_chase_shows_the_units_way_and_its_arrival_with_its_expected_time(
    reviewer: Reviewer, tmp_path: Path
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        incident_id = await drive_chase(reviewer)
        await reviewer.open(incident_id)
    page = await check_replay(reviewer)
    _, expected = await check_trace(reviewer, page)
    await check_answers(reviewer, incident_id)
    (unit,) = page["replay"]["units"]
    assert unit["unit"] in UNITS["police"] and len(unit["points"]) == 5, (
        "its position before the offer, and four on the way"
    )
    assert [round(x, 5) for x in unit["points"][-1][1:]] == [round(HOME[1], 5), round(HOME[0], 5)]
    lines = await reviewer.eval(AT_THE_END)
    assert any(unit["unit"] in line for line in lines)
    arrivals = [row for row in expected if row["expected"] == "UNIT_ARRIVES" and row["outcome"] != "LIFTED"]
    assert [row["leg"] for row in arrivals] == ["police"] and arrivals[0]["outcome"] in ("IN_TIME", "LATE")
    # A desk that answers at once leaves no time in which the answer alone is awaited.
    assert {row["expected"] for row in expected} >= {"MACHINE_RECEIVES", "UNIT_DISPATCHED"}
    await reviewer.shot("review-chase", "#h-replay")
    await check_maps(reviewer, incident_id, page, tmp_path)


async def test_a_finding_is_written_with_its_owner_and_day_is_followed_and_closed(
    reviewer: Reviewer, played: Played
) -> None:
    url, incident_id = reviewer.mesh.now.console_url, played.demo

    async def write(**given: str) -> None:
        await reviewer.browser("open", page="reviewer", url=f"{url}/incidents/{incident_id}")
        for name, value in given.items():
            await reviewer.browser("fill", page="reviewer", selector=f"#new-finding [name={name}]", value=value)
        await reviewer.browser("click", page="reviewer", selector="#new-finding button")

    await write(text="the second unit was asked too late", owner=" ", due_on="2020-01-31")
    await reviewer.browser("wait", page="reviewer", selector="#h-findings ~ .refusal")
    (refused,) = await reviewer.browser("text", page="reviewer", selector="#h-findings ~ .refusal")
    assert "owner" in refused
    kept = await reviewer.eval("document.querySelector('#new-finding [name=text]').value")
    assert kept == "the second unit was asked too late", "what was written isn't lost"
    await write(text="the second unit was asked too late", owner="112 room", due_on="2020-01-31")
    await reviewer.browser("wait", page="reviewer", selector="[data-finding]")
    await reviewer.browser("open", page="reviewer", url=f"{url}/findings")
    (overdue,) = await reviewer.browser("text", page="reviewer", selector="tr.late")
    assert "2020-01-31 overdue" in overdue and incident_id in overdue and "112 room" in overdue
    found = await reviewer.browser("axe", page="reviewer")
    assert [finding for finding in found if finding["impact"] in ("serious", "critical")] == []
    await reviewer.browser("fill", page="reviewer", selector="[data-finding] [name=outcome]", value="asked at once now")
    await reviewer.browser("click", page="reviewer", selector="[data-finding] button")
    await reviewer.browser("wait", page="reviewer", selector="tr[data-finding]:not(.late)")
    (closed,) = await reviewer.browser("text", page="reviewer", selector="tr[data-finding]")
    assert "asked at once now" in closed and "overdue" not in closed
