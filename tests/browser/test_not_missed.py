"""What a duty officer must not miss, in a real browser on a real mesh: incidents on every page, her panic calls, who somebody is, ended
incidents that wait to be closed, and with whom a call with her is shared.

`make test-browser` runs it. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress

import grpc.aio
import pytest
import pytest_asyncio

from services.client.actors import VENDOR
from services.common import times
from tandem.common.v1 import log_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.ingest.v1 import ingest_pb2
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
STREET = {"latitude": 37.6420, "longitude": 127.2165, "accuracy": 8}
TYPED = "02:10 순찰차 1대 정비 중"
SIZES = ((1280, 720), (1440, 900))
LIVE_PAGES = {"police": "ko", "probation": "en"}
CAR = ".task[data-state='offered'] button.main"
SOUNDED = "document.body.dataset.sounded"


class Night:
    """Both desks with several pages each, a police car's phone, and the people of the demo."""

    def __init__(self, scene: Scene, police: Station, seen: Browser) -> None:
        self.scene = scene
        self.police = police
        self.browser = seen
        self.url = scene.mesh.now.console_url
        self.incident_id = ""
        self._events = 0

    async def text(self, page: str, selector: str) -> str:
        return "\n".join(await self.browser("text", page=page, selector=selector))

    async def until(self, page: str, condition: str) -> None:
        await self.browser.until(page, condition, PATIENCE_S)

    async def eval(self, page: str, expression: str) -> object:
        return await self.browser("eval", page=page, expression=expression)

    async def open(self, page: str, path: str) -> None:
        assert await self.browser("open", page=page, url=self.url + path) == 200, path

    async def sign_in(self, page: str, role: str, language: str) -> None:
        await self.browser.sign_in(page, self.url, role, language)

    async def live(self, page: str) -> None:
        """Opens the live page, and chooses the incident."""
        await self.open(page, "/")
        await self.browser("wait", page=page, selector="#connection.ok")
        await self.browser("click", page=page, selector=f"#incidents li[data-incident='{self.incident_id}'] .pick")
        await self.browser("wait", page=page, selector=f"#card[data-incident='{self.incident_id}']")

    async def shots(self, page: str, name: str) -> None:
        """Saves a picture at each size of a desk's screen, where TANDEM_SHOTS is set."""
        if os.environ.get("TANDEM_SHOTS"):
            for width, height in SIZES:
                await self.browser("resize", page=page, width=width, height=height)
                await asyncio.sleep(2)  # the map's tiles
                await shot(self.browser, page, f"{name}-{width}")

    async def press(self, event: log_pb2.EquipmentKind.ValueType) -> None:
        """Has her device report an event now."""
        clients = self.scene.clients
        self._events += 1
        pressed = ingest_pb2.EquipmentEvent(
            device_id=self.scene.stage.plan.id("app"),
            report_id=f"press-{self._events}",
            event=event,
            event_time=times.to_timestamp(clients.clock.now_ms()),
        )
        request = ingest_pb2.ReportBatchRequest(equipment=[pressed])
        assert not (await clients.ingest.ReportBatch(request, metadata=clients.identity(VENDOR))).refusals

    async def send_car(self) -> dispatch_pb2.Assignment:
        """Has the desk send the car to the protected person."""
        to = next(each for each in await self.own() if each.subject_id == self.scene.stage.person_id)
        request = dispatch_pb2.SendUnitRequest(
            assignment_id=to.assignment_id,
            unit_id="car-1",
            offer_number=max([to.offer_number, *(offer.offer_number for offer in to.unit_offers)]),
        )
        leg = self.scene.clients.legs["police"].dispatch
        sent: dispatch_pb2.Assignment = (await leg.SendUnit(request, metadata=self.police.desk)).assignment
        return sent

    async def is_up(self) -> bool:
        """Whether the police leg answers."""
        try:
            return bool(await self.own())
        except grpc.aio.AioRpcError:
            return False

    async def own(self) -> list[dispatch_pb2.Assignment]:
        """The police's assignments of the incident."""
        return [each for each in await self.police.own() if each.incident_id == self.incident_id]


@pytest.fixture(scope="module")
def push_service() -> PushService:
    return PushService()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, push_service: PushService, packages: None) -> Iterator[RunningMesh]:
    settings = {"TANDEM_PUSH_SERVICES": push_service.origin, **UNHURRIED}
    with running_mesh(tmp_path_factory.mktemp("browser") / "mesh", settings=settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def night(mesh: RunningMesh, push_service: PushService) -> AsyncIterator[Night]:
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(scene_on(mesh, push_service))
        police = await stack.enter_async_context(station(scene))
        await police.put("car-1")
        night = Night(scene, police, await stack.enter_async_context(browser()))
        for page, language in LIVE_PAGES.items():
            await night.sign_in(page, page, language)
            await night.sign_in(f"{page}-form", page, language)
        code = await police.link("car-1")
        await night.browser("phone", page="car", url=f"{scene.url}/unit/#{code}", language="ko", at=STREET, width=390)
        await night.browser("click", page="car", selector="#sign-in-now")
        await night.browser("wait", page="car", selector="#duty:not([hidden])")
        yield night


# ── every page ──


async def test_a_page_that_is_being_filled_in_shows_the_incident_and_keeps_what_was_typed(night: Night) -> None:
    for page, path in (("police-form", "/handover"), ("probation-form", "/roster")):
        await night.open(page, path)
        await night.browser("wait", page=page, selector="#incident-bar #connection.ok")
    assert "열린 사건 없음" in await night.text("police-form", "#bar-open")
    await night.browser("fill", page="police-form", selector="textarea[name=notes]", value=TYPED)
    await night.eval("police-form", "window.isTheSamePage = true")
    for page in LIVE_PAGES:
        await night.open(page, "/")
        await night.browser("wait", page=page, selector="#connection.ok")
        await night.eval(page, _KEEP_NAMES)
    for step in (night.scene.stage.warn, night.scene.stage.notify, night.scene.stage.respond):
        await step()
    offers = await until(lambda: _responding(night))
    night.incident_id = offers[0].incident_id
    for page in ("police-form", "probation-form"):
        await night.until(page, f"['demand', 'grave'].includes({SOUNDED})")  # grave: the wearer may arrive first
        await night.until(page, f"document.querySelector('#bar-first').href.endsWith('{night.incident_id}')")
    assert re.fullmatch(r"열린 사건 \d+건", await night.text("police-form", "#bar-open"))
    assert "접근" in await night.text("police-form", "#bar-first")
    assert await night.eval("police-form", "window.isTheSamePage && document.querySelector('textarea').value") == TYPED
    await night.shots("police-form", "console-bar-ko")
    await night.shots("probation-form", "bar-roster-en")


async def test_the_countdown_is_the_own_agencys_and_runs(night: Night) -> None:
    async def agrees() -> bool:
        due = [times.from_timestamp(each.due_at) for each in await night.own() if each.HasField("due_at")]
        said = await night.text("police-form", "#bar-due")
        shown = re.fullmatch(r"기한 (초과 )?(\d+)(초|분)", said)
        if not due or not shown:
            return not due and not said
        shown_s = int(shown[2]) * {"초": 1, "분": 60}[shown[3]] * (-1 if shown[1] else 1)
        left_s = (min(due) - night.scene.clients.clock.now_ms()) / 1000
        return abs(shown_s - left_s) <= (31 if shown[3] == "분" else 3)

    await until(agrees)


async def test_one_click_leads_to_the_incident_and_loses_nothing(night: Night) -> None:
    opened = await night.browser("popup", page="police-form", selector="#bar-first", named="beside")
    assert opened.startswith(night.url)
    await night.browser("wait", page="beside", selector=f"#card[data-incident='{night.incident_id}']")
    assert await night.eval("police-form", "location.pathname + document.querySelector('textarea').value") == (
        "/handover" + TYPED
    )
    # Nothing is typed on this page, so the live page takes its place.
    await night.browser("click", page="probation-form", selector="#bar-first")
    await night.browser("wait", page="probation-form", selector=f"#card[data-incident='{night.incident_id}']")
    assert await night.eval("probation-form", "document.querySelector('#incident-bar') === null")


# ── who somebody is ──


async def test_the_wearer_is_named_so_from_the_first_moment_on(night: Night) -> None:
    assert set(await night.eval("probation", "window.names")) == {"Wearer"}  # type: ignore[call-overload]
    assert set(await night.eval("police", "window.names")) <= {"피해자", "보호장소"}  # type: ignore[call-overload]
    assert "Protected person" not in await night.text("probation", "#card-own")
    alerts = await night.text("probation", "#alerts")
    assert "Wearer" in alerts and "Protected person" not in alerts
    sent = await night.send_car()
    await night.browser("wait", page="car", selector=f".task[data-assignment='{sent.assignment_id}']")
    to = await night.text("car", f".task[data-assignment='{sent.assignment_id}'] p")
    assert "피해자에게" in to and "피부착자에게" not in to
    await night.browser("click", page="car", selector=CAR)
    await night.browser("wait", page="car", selector=".task[data-state='acknowledged']")


# ── without a connection ──


async def test_a_page_that_has_lost_its_connection_says_so_and_shows_no_old_countdown(night: Night) -> None:
    await night.until("police-form", "document.querySelector('#bar-due').textContent")
    console = night.scene.mesh.now.pids["console"]
    os.kill(console, signal.SIGSTOP)
    try:
        for page in ("police-form", "police"):
            await night.until(page, "document.querySelector('#connection.lost')")
        await night.until("police-form", "!document.querySelector('#bar-due').textContent")
        assert "기준" in await night.text("police-form", "#bar-as-of")
        await night.until("police", "document.querySelector('#incidents .due').textContent === '기한 확인 불가'")
        await night.shots("police-form", "bar-lost-ko")
    finally:
        with suppress(ProcessLookupError):  # the mesh's supervisor may have started another console by now
            os.kill(console, signal.SIGCONT)
    await night.until("police-form", "document.querySelector('#incident-bar:not(.old) #connection.ok')")
    await night.until("police-form", "document.querySelector('#bar-due').textContent")
    assert await night.eval("police-form", "document.querySelector('textarea').value") == TYPED


# ── panic ──


async def test_a_panic_in_an_open_incident_is_the_first_fact_everywhere_and_reaches_the_unit(night: Night) -> None:
    await night.browser("click", page="car", selector=".task[data-state='acknowledged'] button.main")
    await night.browser("wait", page="car", selector=".task[data-state='en_route']")
    for page in LIVE_PAGES:
        await night.live(page)
    await night.press(log_pb2.PANIC_BUTTON)
    row = f"#incidents li:first-child[data-incident='{night.incident_id}'] .line > .panic:first-child:not(.over)"
    for page in ("police", "probation", "police-form", "beside"):
        await night.until(page, f"{SOUNDED} === 'panic'")
    for page in LIVE_PAGES:
        await night.browser("wait", page=page, selector=row)
        await night.browser("wait", page=page, selector="#card-head > .panic:first-child:not(.over)")
    assert re.match(r"긴급 신고 \d\d:\d\d:\d\d · ", await night.text("police", row))
    assert re.match(r"Panic call \d\d:\d\d:\d\d · ", await night.text("probation", row))
    assert re.match(r"긴급 신고 \d\d:\d\d:\d\d", await night.text("police-form", "#bar-first .panic"))
    await night.until("car", "document.documentElement.dataset.called === '1'")
    assert re.search(
        r"피해자가 .*에 도움을 요청했습니다",
        await night.text("car", ".task[data-state='en_route'] > p.panic:first-child"),
    )
    await night.shots("police", "panic-live-ko")
    await night.shots("probation", "panic-live-en")
    await night.shots("police-form", "panic-bar-ko")
    await night.browser("resize", page="car", width=390, height=844)
    await shot(night.browser, "car", "panic-unit-scrolled-ko")
    assert await night.eval("car", _IS_ON_SCREEN), "the call stays on the screen while the card scrolls"
    await night.eval("car", "document.querySelector('.task').scrollIntoView()")
    await shot(night.browser, "car", "panic-unit-ko")


async def test_a_repeated_call_has_a_new_time_and_sounds_once_more(night: Night) -> None:
    before = await night.text("police", "#card-head .panic")
    for page in LIVE_PAGES:
        await night.eval(page, "delete document.body.dataset.sounded; true")
    await asyncio.sleep(1.1)  # so that the time, which is shown to the second, is another one
    await night.press(log_pb2.PANIC_BUTTON)
    for page in LIVE_PAGES:
        await night.until(page, f"{SOUNDED} === 'panic'")
    await night.until("car", "document.documentElement.dataset.called === '2'")
    assert await night.text("police", "#card-head .panic") != before


async def test_a_restart_of_the_leg_keeps_the_call(night: Night) -> None:
    panic_at = (await night.own())[0].panic_at
    await night.scene.mesh.wait_until_returned(night.scene.mesh.kill("dispatch-police"))
    async with asyncio.timeout(PATIENCE_S):
        while not await night.is_up():  # noqa: ASYNC110
            await asyncio.sleep(0.5)
    for page in LIVE_PAGES:
        await night.until(page, "document.querySelector('#connection.ok')")
    assert {times.from_timestamp(each.panic_at) for each in await night.own()} == {times.from_timestamp(panic_at)}
    await night.browser("wait", page="police", selector="#card-head > .panic:first-child:not(.over)")


async def test_a_call_that_is_withdrawn_is_shown_as_withdrawn(night: Night) -> None:
    await night.press(log_pb2.PANIC_CANCELLED)
    await night.browser("wait", page="police", selector="#card-head > .panic.over:first-child")
    assert "취소함" in await night.text("police", "#card-head .panic")
    await night.browser("wait", page="car", selector=".task > p.panic.over:first-child")
    await shot(night.browser, "car", "panic-taken-back-unit-ko")


# ── notes ──


async def test_a_call_with_her_stays_with_the_desk_and_another_note_is_shared(night: Night) -> None:
    shares = "document.querySelector('#note-form').share.checked"
    assert await night.eval("police", shares), "a note is proposed to be shared"
    await night.browser(
        "select", page="police", selector="#note-form select[name=kind]", value="CALLED_PROTECTED_PERSON"
    )
    assert not await night.eval("police", shares)
    assert await night.eval("police", "!document.querySelector('#note-kept').hidden")
    await night.browser("fill", page="police", selector="#note-form input[name=text]", value="집에 있음")
    await night.shots("police", "note-kept-ko")
    await night.browser("click", page="police", selector="#note-form button")
    await night.until("police", "document.querySelector('#notes').textContent.includes('집에 있음')")
    await night.until("police", shares)  # the next note is proposed by its own kind
    await night.browser("fill", page="police", selector="#note-form input[name=text]", value="정문으로 진입")
    await night.browser("click", page="police", selector="#note-form button")
    await night.until("probation", "document.querySelector('#notes').textContent.includes('정문으로 진입')")
    assert "집에 있음" not in await night.text("probation", "#notes")
    # The page of the incident works without a script: there the leg decides by the kind.
    await night.open("police-form", f"/incidents/{night.incident_id}")
    await night.browser(
        "select", page="police-form", selector="#note-form select[name=kind]", value="CALLED_PROTECTED_PERSON"
    )
    await night.browser("select", page="police-form", selector="#note-form select[name=result]", value="NOTED_SPOKEN")
    await night.browser("fill", page="police-form", selector="#note-form input[name=text]", value="문을 잠갔음")
    await night.shots("police-form", "note-incident-ko")
    await night.browser("click", page="police-form", selector="#note-form button")
    await night.until(
        "police-form", "document.querySelector('#notes .tag')?.closest('li').textContent.includes('문을 잠갔음')"
    )
    await night.until("police", "document.querySelector('#notes').textContent.includes('문을 잠갔음')")
    assert "문을 잠갔음" not in await night.text("probation", "#notes")


# ── ended, to be closed ──


async def test_an_ended_incident_stays_below_until_the_desk_closes_it(night: Night) -> None:
    await night.scene.stage.stand_down()
    row = f"#incidents li[data-incident='{night.incident_id}']:has(.unclosed)"
    for page in LIVE_PAGES:
        await night.browser("wait", page=page, selector=row)
    assert "종료, 종결 필요" in await night.text("police", row) and "Ended, to be closed" in await night.text(
        "probation", row
    )
    assert await night.text("police", "#unclosed") == "종결 대기 1건" and await night.text("police", "#count") == "0"
    await night.until("police-form", "document.querySelector('#bar-unclosed').textContent === '종결 대기 1건'")
    assert "없음" in await night.text("police-form", "#bar-open")
    for page, yet in (("police", "아직"), ("probation", "yet")):
        assert yet not in await night.text(page, "#card"), page
    await night.shots("police", "unclosed-live-ko")
    await night.shots("probation", "unclosed-live-en")
    await night.browser("click", page="police", selector=f"{row} .close")
    await night.browser("select", page="police", selector="#ask-close select[name=cause]", value="BREACH_CONFIRMED")
    await night.browser("click", page="police", selector="#ask-close button.main")
    await night.until("police", f'!document.querySelector("{row}")')
    assert {each.state for each in await night.own() if each.demand == 4} == {dispatch_pb2.CLOSED}
    assert await night.eval("probation", f'Boolean(document.querySelector("{row}"))'), "each desk closes its own"


async def test_the_pages_run_without_faults(night: Night) -> None:
    found = await night.browser("axe", page="police-form")
    assert [finding for finding in found if finding["impact"] in ("serious", "critical")] == []
    # While the console was stopped and started, the browser noted each request that failed.
    faults = (await night.browser("seen"))["faults"]
    assert [
        fault for fault in faults if "Failed to load resource" not in fault and "Failed to fetch" not in fault
    ] == []


async def _responding(night: Night) -> list[dispatch_pb2.Assignment]:
    return [each for each in await night.police.own() if each.demand == 4]


_IS_ON_SCREEN = """(() => {
    const { top, bottom } = document.querySelector(".task > .panic").getBoundingClientRect();
    return top >= 0 && bottom <= innerHeight;
})()"""
_KEEP_NAMES = """(() => {
    window.names = [];
    new MutationObserver(() => {
        for (const name of document.querySelectorAll("#card-own .destination > .state-line > strong:first-child")) {
            const kind = name.textContent.split(" ").slice(0, 1).join();
            if (!window.names.includes(kind)) window.names.push(kind);
        }
    }).observe(document.body, { subtree: true, childList: true, characterData: true });
    return true;
})()"""
"""Keeps each name that a destination of the card ever had."""
