"""The unit's page in a real browser, as on a telephone, on a real mesh: start the shift, be asked, drive, arrive, close, call for help.

`make test-browser` runs it; it needs Chromium and Node.js. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from tandem.dispatch.v1 import dispatch_pb2, roster_pb2
from tests.browser.driver import Browser, browser
from tests.support.common.mesh import RunningMesh, running_mesh
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
HOME = {"latitude": 37.6362, "longitude": 127.2165, "accuracy": 8}
ASKED = ".task[data-state='offered'], .task[data-state='escalated']"
MAIN = ".task button.main"


class Road:
    """The scene, the police's desk, and a browser with the pages of its cars."""

    def __init__(self, scene: Scene, police: Station, seen: Browser) -> None:
        self.scene = scene
        self.police = police
        self.browser = seen

    async def open(self, page: str, code: str, language: str = "ko", **more: Any) -> None:
        """Opens a link, as it was sent."""
        await self.browser("phone", page=page, url=f"{self.scene.url}/unit/#{code}", language=language, **more)
        await self.browser("wait", page=page, selector="#sign-in:not([hidden])")

    async def start(self, page: str, unit_id: str, language: str = "ko", **more: Any) -> None:
        await self.open(page, await self.police.link(unit_id), language, **more)
        await self.browser("click", page=page, selector="#sign-in-now")
        await self.browser("wait", page=page, selector="#duty:not([hidden])")

    async def text(self, page: str, selector: str) -> str:
        return " ".join(await self.browser("text", page=page, selector=selector))

    async def says(self, page: str, selector: str, words: str) -> None:
        async def said() -> bool:
            return words in await self.text(page, selector)

        await until(said)

    async def state(self, page: str, state: str) -> None:
        await self.browser("wait", page=page, selector=f".task[data-state='{state}']")

    async def clean(self, page: str) -> None:
        found = [fault for fault in await self.browser("axe", page=page) if fault["impact"] in ("serious", "critical")]
        assert found == []
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not await self.browser("eval", page=page, expression=wide)

    async def stored(self, assignment_id: str) -> dispatch_pb2.Assignment:
        return next(each for each in await self.police.own() if each.assignment_id == assignment_id)


@pytest.fixture(scope="module")
def push_service() -> PushService:
    return PushService()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, push_service: PushService, packages: None) -> Iterator[RunningMesh]:
    settings = {"TANDEM_PUSH_SERVICES": push_service.origin, "TANDEM_PROBATION_DESK_PHONE": "02-000-0000", **UNHURRIED}
    with running_mesh(tmp_path_factory.mktemp("browser") / "mesh", settings=settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def road(mesh: RunningMesh, push_service: PushService) -> AsyncIterator[Road]:
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(scene_on(mesh, push_service))
        police = await stack.enter_async_context(station(scene))
        await police.put("car-1", "car-2")
        yield Road(scene, police, await stack.enter_async_context(browser()))


async def test_a_shift_starts_by_a_link_that_works_once(road: Road) -> None:
    code = await road.police.link("car-1")
    await road.open("car-1", code, at=STREET)
    await road.clean("car-1")
    assert "#" not in await road.browser("eval", page="car-1", expression="location.href")
    await shot(road.browser, "car-1", "unit-page-start-ko")
    await road.browser("click", page="car-1", selector="#sign-in-now")
    await road.browser("wait", page="car-1", selector="#position[data-sent]:not([data-sent='0'])")
    await road.clean("car-1")
    await shot(road.browser, "car-1", "unit-page-waiting-ko")

    async def positioned() -> bool:
        return (await road.police.reports("car-1")).position.lat_deg == STREET["latitude"]

    await until(positioned)
    await road.open("thief", code, "en")
    await road.browser("click", page="thief", selector="#sign-in-now")
    await road.says("thief", "#sign-in-said", "used already")
    calls = await road.browser(
        "eval", page="car-1", expression="[...document.querySelectorAll('.call')].map(e => e.href)"
    )
    assert calls == ["tel:112", "tel:02-000-0000", "tel:119"]


async def test_a_busy_unit_stays_busy_when_its_page_is_reloaded(road: Road) -> None:
    async def reported() -> roster_pb2.UnitStatus.ValueType:
        return (await road.police.reports("car-1")).status

    async def is_busy() -> bool:
        return await reported() == roster_pb2.BUSY

    await road.browser("click", page="car-1", selector="[data-status='busy']")
    await until(is_busy)
    assert await road.browser("open", page="car-1", url=f"{road.scene.url}/unit/") == 200
    await road.browser.until("car-1", "Number(document.getElementById('position').dataset.sent) > 0")
    assert await is_busy()
    await road.browser("wait", page="car-1", selector="[data-status='busy'][aria-pressed='true']")
    await road.browser("click", page="car-1", selector="[data-status='available']")

    async def is_available() -> bool:
        return await reported() == roster_pb2.AVAILABLE

    await until(is_available)


async def test_an_offer_rings_and_says_so_when_the_desk_has_given_it_to_another_unit_that_has_not_accepted(
    road: Road,
) -> None:
    await road.start("car-2", "car-2", "en", at=STREET)
    await road.scene.stage.warn()
    await road.scene.stage.notify()
    await road.scene.stage.respond()
    rings = "document.documentElement.dataset.ringing === 'true'"

    async def asked() -> str:
        for page in ("car-1", "car-2"):
            if await road.browser("eval", page=page, expression=rings):
                return page
        return ""

    first = str(await until(asked))
    await road.clean(first)
    # The unit that was asked doesn't answer, and the desk gives its offers to others: the page says that nobody has it yet.
    before = await road.browser("eval", page=first, expression="document.querySelector('.task').dataset.assignment")
    offer = await road.stored(before)
    await road.browser("offline", page=first, offline=True)
    await road.browser("click", page=first, selector=MAIN)
    await road.police.refuse_offers()
    await road.browser("offline", page=first, offline=False)
    words = {"car-1": "아직 맡은 팀이 없습니다", "car-2": "Nobody has it yet"}

    async def gone() -> bool:
        return words[first] in await road.text(first, "#said")

    await until(gone)
    assert (await road.stored(before)).choice.unit_id != offer.choice.unit_id


async def test_a_unit_accepts_drives_arrives_and_closes_by_one_thumb(road: Road) -> None:
    other = "car-2"

    async def asked() -> str:
        await road.police.refuse_offers()
        for page in ("car-1", "car-2"):
            if await road.browser("eval", page=page, expression=f'!!document.querySelector("{ASKED}")'):
                return page
        return ""

    offered = [each for each in await road.police.own() if each.state in (dispatch_pb2.OFFERED, dispatch_pb2.ESCALATED)]
    units = {each.choice.unit_id for each in offered} & {"car-1", "car-2"}
    page = units.pop() if units else str(await until(asked))
    other = "car-1" if page == "car-2" else "car-2"
    await road.browser("wait", page=page, selector=ASKED)
    await shot(road.browser, page, "unit-page-offer-ko" if page == "car-1" else "unit-page-offer-en")
    task = await road.browser("eval", page=page, expression=f'document.querySelector("{ASKED}").dataset.assignment')
    own = f".task[data-assignment='{task}']"
    for state in ("acknowledged", "en_route"):
        await road.browser("click", page=page, selector=f"{own} button.main")
        await road.browser("wait", page=page, selector=f"{own}[data-state='{state}']")
    await road.browser("wait", page=page, selector=f"{own} .target[data-known='true']")
    await road.clean(page)
    await shot(road.browser, page, "unit-page-driving-ko" if page == "car-1" else "unit-page-driving-en")
    await road.browser("locate", page=page, at=HOME)
    await road.browser("click", page=page, selector=f"{own} button.main")
    await road.browser("wait", page=page, selector=f"{own}[data-state='on_scene']")
    # The network is away for the last step: the answer waits, and a reload doesn't lose it.
    await road.browser("click", page=page, selector=f"{own} .pair button:last-child")
    await road.browser("offline", page=page, offline=True)
    await road.browser("click", page=page, selector=f"{own} [data-cause='breach_confirmed']")
    await road.browser("wait", page=page, selector=f"{own} .actions .warn")
    await road.browser("eval", page=page, expression="void location.reload()")
    await road.browser("wait", page=page, selector="#duty:not([hidden])")
    await road.browser("offline", page=page, offline=False)

    async def closed() -> bool:
        stored = await road.stored(task)
        return stored.state == dispatch_pb2.CLOSED and stored.close_cause == dispatch_pb2.BREACH_CONFIRMED

    await until(closed)
    assert (await road.stored(task)).acknowledged_by == f"spiffe://tandem/unit/police/{page}"
    assert other != page


async def test_a_push_message_says_that_somebody_is_asked_and_nothing_else(road: Road) -> None:
    await road.browser("push", page="car-1", data=json.dumps({"v": 1}))
    shown = (
        "navigator.serviceWorker.ready.then(r => r.getNotifications()).then(n => n.map(e => e.title + e.body).join())"
    )
    assert await until(lambda: road.browser("eval", page="car-1", expression=shown)) == "출동 요청"


async def test_an_officer_calls_for_help_by_two_taps_and_the_desk_ends_it(road: Road) -> None:
    await road.browser("click", page="car-1", selector="#distress")
    await road.clean("car-1")
    await road.browser("click", page="car-1", selector="#distress-no")
    await road.browser("click", page="car-1", selector="#distress")
    await road.browser("click", page="car-1", selector="#distress-yes")

    async def alarmed() -> bool:
        return (await road.police.reports("car-1")).HasField("distress_at")

    await until(alarmed)
    await road.says("car-1", "#distress-said", "알렸습니다")


async def test_a_page_from_yesterday_says_that_its_shift_is_over(road: Road) -> None:
    await road.police.put("car-9")
    await road.start("car-9", "car-9", "en", at=STREET)
    await road.police.put("car-9", shift_ms=-1_000)
    await road.browser("wait", page="car-9", selector="#ended:not([hidden])")
    await road.says("car-9", "#ended-why", "The shift is over")
    await road.clean("car-9")
    assert await road.browser("eval", page="car-9", expression="document.querySelectorAll('.task').length") == 0


async def test_the_end_of_the_shift_takes_the_unit_off_duty(road: Road) -> None:
    await road.browser("click", page="car-2", selector="#shift-end")
    await road.browser("click", page="car-2", selector="#shift-yes")
    await road.browser("wait", page="car-2", selector="#ended:not([hidden])")

    async def off() -> bool:
        return (await road.police.reports("car-2")).status == 3

    await until(off)


async def test_the_page_keeps_nothing_of_the_api_and_asks_no_other_server(road: Road) -> None:
    cached = """caches.keys().then(async names => (await Promise.all(names.map(async name =>
        (await (await caches.open(name)).keys()).map(request => new URL(request.url).pathname)))).flat())"""
    paths = await road.browser("eval", page="car-1", expression=cached)
    assert paths and not [path for path in paths if path.startswith("/api")]
    found = await road.browser("seen")
    assert found["origins"] == [road.scene.url] and not [fault for fault in found["faults"] if "Error" in fault]
