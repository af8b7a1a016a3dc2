"""A desk sends a unit, in real browsers on a real mesh: two officers of the police, a unit's page on a phone, and an agency without a
roster.

`make test-browser` runs it; it needs Chromium and Node.js. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from services.client.actors import DESKS
from services.common import times
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2
from tests.browser.driver import Browser, browser
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh
from tests.support.field.phone import PushService
from tests.support.field.scene import Scene, scene_on, until
from tests.support.field.shots import shot
from tests.support.field.unit import UNHURRIED, Station, station

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NEAR = {"latitude": 37.6420, "longitude": 127.2165, "accuracy": 8}
FAR = {"latitude": 37.6620, "longitude": 127.2165, "accuracy": 8}
HOME = {"latitude": 37.6362, "longitude": 127.2165, "accuracy": 8}
WINDOWS = ((1280, 720), (1440, 900))
SEEN_WHOLE = """(() => {
    const part = document.querySelector("#sending").getBoundingClientRect();
    const shown = ["#send-units .unit-choice", "#send-now", "#radio-form button"].map((selector) => document.querySelector(selector));
    return shown.every((element) => {
        const box = element.getBoundingClientRect();
        return box.height >= 44 && box.bottom <= Math.min(part.bottom, window.innerHeight) && box.top >= part.top
            && parseFloat(getComputedStyle(element).fontSize) >= 17;
    });
})()"""
"""Whether the nearest unit, the button that sends it and the one for the radio are seen without scrolling, large enough to be hit."""


class ControlRoom:
    """The scene, the police's roster, and a browser with the officers' pages and the units' phones."""

    def __init__(self, scene: Scene, police: Station, seen: Browser) -> None:
        self.scene = scene
        self.police = police
        self.browser = seen
        self.incident_id = ""

    async def officer(self, page: str, role: str, language: str) -> None:
        """Signs an officer in, chooses the incident and waits for its card."""
        url = self.scene.mesh.now.console_url
        await self.browser.sign_in(page, url, role, language, name=page)
        await self.browser("open", page=page, url=url)
        row = f"#incidents li[data-incident='{self.incident_id}'] .pick"
        await self.browser("wait", page=page, selector=row)
        await self.browser("click", page=page, selector=row)
        await self.browser("wait", page=page, selector=f"#card[data-incident='{self.incident_id}']")

    async def phone(self, unit_id: str, at: dict[str, float], language: str = "ko") -> None:
        """Opens a unit's page on a phone and starts its shift."""
        url = f"{self.scene.url}/unit/#{await self.police.link(unit_id)}"
        await self.browser("phone", page=unit_id, url=url, language=language, at=at, width=390)
        await self.browser("wait", page=unit_id, selector="#sign-in:not([hidden])")
        await self.browser("click", page=unit_id, selector="#sign-in-now")

        async def positioned() -> bool:
            return (await self.police.reports(unit_id)).position.lat_deg == at["latitude"]

        await until(positioned)

    async def status(self, unit_id: str, status: roster_pb2.UnitStatus.ValueType) -> None:
        """Reports the state of a unit, as its desk heard it."""
        at = times.to_timestamp(self.scene.clients.clock.now_ms())
        request = roster_pb2.ReportUnitRequest(unit_id=unit_id, status=status, at=at)
        await self.police.roster.ReportUnit(request, metadata=self.police.desk)

    async def text(self, page: str, selector: str) -> str:
        return " ".join(await self.browser("text", page=page, selector=selector))

    async def says(self, page: str, selector: str, *words: str) -> None:
        """Waits until an element has all of these words."""
        all_ = "".join(f" && text.includes({word!r})" for word in words)
        found = (
            f"(() => {{ const text = document.querySelector({selector!r})?.innerText ?? ''; return true{all_}; }})()"
        )
        await self.browser.until(page, found, PATIENCE_S)

    async def opened(self, page: str, assignment_id: str) -> None:
        """Opens the list of units for a destination by its button."""
        await self.browser("click", page=page, selector=f"[data-act='open {assignment_id}']")
        await self.browser("wait", page=page, selector="#sending:not([hidden])")

    async def chosen(self, page: str) -> str:
        """The unit that is chosen in an open list; empty if none is."""
        expression = "document.querySelector('#send-units :checked')?.value ?? ''"
        return str(await self.browser("eval", page=page, expression=expression))

    async def shots(self, page: str, name: str) -> None:
        """Saves pictures of a page in each window."""
        for width, height in WINDOWS:
            await self.browser("resize", page=page, width=width, height=height)
            await shot(self.browser, page, f"{name}-{width}")
        await self.browser("resize", page=page, width=WINDOWS[0][0], height=WINDOWS[0][1])

    async def stored(self, assignment_id: str) -> dispatch_pb2.Assignment:
        return next(each for each in await self.police.own() if each.assignment_id == assignment_id)


def line(unit_id: str) -> str:
    """The line of the card about a unit that was asked."""
    return f"#card-own li[data-unit='{unit_id}']"


@pytest.fixture(scope="module")
def push_service() -> PushService:
    return PushService()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, push_service: PushService, packages: None) -> Iterator[RunningMesh]:
    settings = {"TANDEM_PUSH_SERVICES": push_service.origin, **UNHURRIED}
    settings |= {"TANDEM_ANSWER_WITHIN_S": "3600", "TANDEM_OFFER_WITHIN_S": "3600"}
    with running_mesh(tmp_path_factory.mktemp("browser") / "mesh", settings=settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def control_room(mesh: RunningMesh, push_service: PushService) -> AsyncIterator[ControlRoom]:
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(scene_on(mesh, push_service))
        police = await stack.enter_async_context(station(scene))
        seen = await stack.enter_async_context(browser())
        control_room = ControlRoom(scene, police, seen)
        # Nobody is on duty when it begins, so the desk itself is asked.
        await police.put("car-9", shift_ms=-1_000)
        await scene.stage.warn()
        await scene.stage.notify()
        await scene.stage.respond()
        own = await until(police.own)
        control_room.incident_id = own[0].incident_id
        await police.put("car-1", "car-2", "car-3")
        await control_room.phone("car-1", NEAR)
        await control_room.phone("car-2", FAR)
        await police.at("car-3", 37.70, 127.2165)
        await control_room.officer("kim", "police", "ko")
        await control_room.officer("lee", "police", "en")
        for page in ("kim", "lee"):
            await seen("resize", page=page, width=1280, height=720)
        yield control_room


async def destinations(control_room: ControlRoom) -> list[str]:
    """Ids of the police's assignments, as the card lists them."""
    expression = "[...document.querySelectorAll('#card-own [data-assignment]')].map((part) => part.dataset.assignment)"
    return list(await control_room.browser("eval", page="kim", expression=expression))


async def test_a_unit_is_sent_by_two_keys_rings_and_each_step_shows_as_it_comes_true(control_room: ControlRoom) -> None:
    first, *_ = await destinations(control_room)
    await control_room.browser("press", page="kim", key="s")
    await control_room.browser("wait", page="kim", selector="#send-units :checked:enabled")
    assert await control_room.chosen("kim") == "car-1", "the nearest free one"
    near = await control_room.text("kim", "#send-units [data-unit='car-1']")
    assert "출동 가능" in near and " m · 약 " in near and "patrol-car" in near, near
    assert "km · 약" in await control_room.text("kim", "#send-units [data-unit='car-2']")
    await control_room.browser.until("kim", SEEN_WHOLE)
    found = await control_room.browser("axe", page="kim")
    assert [fault for fault in found if fault["impact"] in ("serious", "critical")] == []
    await control_room.shots("kim", "console-send-ko")
    await control_room.browser("press", page="kim", key="s")
    await control_room.says("kim", line("car-1"), "응답 대기", "남음", "kim 요청")
    await control_room.says("lee", line("car-1"), "Asked", "asked by kim at")
    await control_room.shots("lee", "console-asked-en")
    for page, dispatched in (("kim", "출동 지령"), ("lee", "Dispatched")):
        states = await control_room.text(page, "#card-own .state, #incidents .state")
        assert dispatched not in states, "to ask a unit is no dispatch"
    assert (await control_room.stored(first)).state == dispatch_pb2.ACKNOWLEDGED

    await control_room.browser.until("car-1", "document.documentElement.dataset.ringing === 'true'", PATIENCE_S)
    await shot(control_room.browser, "car-1", "unit-page-sent-ko-390")
    task = f".task[data-assignment='{first}']"
    own = f"#card-own [data-assignment='{first}']"
    await control_room.browser("click", page="car-1", selector=f"{task} button.main")
    await control_room.says("kim", line("car-1"), "수락됨")
    await control_room.says("kim", f"{own} .state-line", "수락됨")
    await control_room.says("lee", line("car-1"), "Unit accepted", "accepted at")
    assert not await control_room.browser(
        "eval", page="kim", expression=f"!!document.querySelector(\"[data-act='open {first}']\")"
    )
    for state, words in (("en_route", "출동 중"), ("on_scene", "현장 도착")):
        await control_room.browser("wait", page="car-1", selector=f"{task} button.main")
        await control_room.browser("click", page="car-1", selector=f"{task} button.main")
        await control_room.browser("wait", page="car-1", selector=f"{task}[data-state='{state}']")
        await control_room.says("kim", line("car-1"), words)
        await control_room.browser("locate", page="car-1", at=HOME)
    await control_room.shots("kim", "console-on-scene-ko")
    stored = await control_room.stored(first)
    assert (stored.choice.unit_id, stored.progressed_by) == ("car-1", "spiffe://tandem/unit/police/car-1")


async def test_the_second_officer_sees_who_asked_whom_and_sends_nobody_by_accident(control_room: ControlRoom) -> None:
    second = (await destinations(control_room))[1]
    for page in ("kim", "lee"):
        await control_room.opened(page, second)
        await control_room.browser("wait", page=page, selector="#send-units :checked:enabled")
        assert await control_room.chosen(page) == "car-2"
    assert "In this incident already" in await control_room.text("lee", "#send-units [data-unit='car-1']")
    await control_room.browser("press", page="kim", key="Enter")
    await control_room.says("kim", line("car-2"), "응답 대기", "kim 요청")
    await control_room.says("lee", "#send-said", "kim has asked car-2")
    assert await control_room.chosen("lee") == ""
    for key in ("Enter", "s"):
        await control_room.browser("press", page="lee", key=key)
    await shot(control_room.browser, "lee", "console-second-officer-en")
    asked = [(offer.choice.unit_id, offer.asked_by) for offer in (await control_room.stored(second)).unit_offers]
    assert asked == [("car-2", "spiffe://npa/desk/console/kim")]
    await control_room.browser("press", page="lee", key="Escape")
    await control_room.browser("wait", page="lee", selector="#sending[hidden]")

    await control_room.browser("wait", page="car-2", selector=f".task[data-assignment='{second}']")
    await control_room.browser(
        "click", page="car-2", selector=f".task[data-assignment='{second}'] .actions button:not(.main)"
    )
    await control_room.browser("wait", page="car-2", selector="[data-reason]")
    await control_room.browser("click", page="car-2", selector="[data-reason]")
    await control_room.says("kim", line("car-2"), "거절됨")
    await control_room.says("kim", line("car-3"), "응답 대기", "자동 요청")
    await control_room.says("lee", line("car-3"), "Asked", "asked automatically at")


async def test_a_unit_that_goes_off_duty_keeps_its_row_and_nobody_takes_its_place(control_room: ControlRoom) -> None:
    second = (await destinations(control_room))[1]
    await control_room.police.put("car-1", "car-2", "car-3", "car-4", "car-5")
    await control_room.opened("kim", second)
    await control_room.browser("wait", page="kim", selector="#send-units :checked:enabled")
    before = await control_room.chosen("kim")
    rows = "[...document.querySelectorAll('#send-units .unit-choice')].map((row) => row.dataset.unit).join()"
    order = await control_room.browser("eval", page="kim", expression=rows)
    await control_room.status(before, roster_pb2.OFF)
    await control_room.says("kim", "#send-said", before, "근무 중이 아닙니다")
    await control_room.says("kim", f"#send-units [data-unit='{before}']", "근무 아님")
    assert (
        await control_room.chosen("kim") == ""
        and await control_room.browser("eval", page="kim", expression=rows) == order
    )
    await control_room.browser("press", page="kim", key="Enter")
    assert len((await control_room.stored(second)).unit_offers) == 2, "nobody else is sent"
    await control_room.browser("press", page="kim", key="Escape")


async def test_without_a_free_unit_one_is_sent_by_radio_with_its_name(control_room: ControlRoom) -> None:
    second = (await destinations(control_room))[1]
    for unit_id in ("car-2", "car-4", "car-5"):
        await control_room.status(unit_id, roster_pb2.BUSY)
    await control_room.opened("lee", second)
    await control_room.says("lee", "#send-said", "No unit is free")
    assert (
        await control_room.browser(
            "eval", page="lee", expression="document.querySelectorAll('#send-units .unit-choice').length"
        )
        > 2
    )
    assert await control_room.chosen("lee") == ""
    await control_room.shots("lee", "console-no-unit-en")
    await control_room.browser("fill", page="lee", selector="#radio-name", value="순찰 12호")
    await control_room.browser("press", page="lee", key="Enter")
    await control_room.says("lee", "#card-own .by-radio", "Sent by radio: 순찰 12호, by lee, at ")
    await control_room.says("kim", "#card-own .by-radio", "무전 지령: 순찰 12호, lee, ")
    await control_room.says("kim", line("car-3"), "요청 해제")
    await control_room.shots("kim", "console-radio-ko")
    stored = await control_room.stored(second)
    assert (stored.state, stored.radio_unit) == (dispatch_pb2.DISPATCHED, "순찰 12호")
    await control_room.browser("click", page="kim", selector=f"[data-act='progress {second}']")
    await control_room.says("kim", f"#card-own [data-assignment='{second}'] .state-line", "출동 중")


async def test_an_agency_without_a_roster_reports_by_its_own_system_or_sends_by_radio(
    control_room: ControlRoom,
) -> None:
    await control_room.officer("park", "probation", "ko")
    await control_room.browser("resize", page="park", width=1280, height=720)
    clients = control_room.scene.clients
    me = clients.identity(DESKS["probation"])

    async def own() -> dispatch_pb2.Assignment:
        listed = await clients.legs["probation"].dispatch.ListIncidents(
            dispatch_pb2.ListIncidentsRequest(incident_id=control_room.incident_id), metadata=me
        )
        return next(to for to in listed.incidents[0].assignments if to.leg == 1 and to.HasField("offered_at"))

    found = await own()
    await control_room.opened("park", found.assignment_id)
    await control_room.says("park", "#sending", "대원 명부가 없는 기관", "무전 지령 기록하기")
    hidden = "document.querySelector('#send-now').hidden && document.querySelector('#send-units').hidden"
    assert await control_room.browser("eval", page="park", expression=hidden)
    await control_room.shots("park", "console-no-roster-ko")
    await control_room.browser("press", page="park", key="Escape")
    leg = clients.legs["probation"].dispatch
    given: dict[str, Any] = {"assignment_id": found.assignment_id}
    await leg.Acknowledge(dispatch_pb2.AcknowledgeRequest(**given), metadata=me)
    await leg.Progress(dispatch_pb2.ProgressRequest(**given, state=dispatch_pb2.DISPATCHED), metadata=me)
    await control_room.says("park", "#card-own", "출동 지령", "기관 시스템이 보고함")
    await control_room.shots("park", "console-by-system-ko")


async def test_no_page_had_a_fault(control_room: ControlRoom) -> None:
    faults = (await control_room.browser("seen"))["faults"]
    assert [fault for fault in faults if "Error" in fault] == []
