"""Her app in a real browser, as on a telephone, on a real mesh: connect, report, be warned, answer, panic, without a network.

`make test-browser` runs it; it needs Chromium and Node.js. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest
import pytest_asyncio

from tandem.common.v1 import contact_pb2
from tests.browser.driver import browser
from tests.support.common.mesh import RunningMesh, running_mesh
from tests.support.field.her_page import HOME, LOCK, PRESENT, SENT, UNLOCK, HerPages
from tests.support.field.phone import PushService
from tests.support.field.scene import scene_on, until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
OLD_POSITION = """void (window.timesAsked = 0, window.positionFrom = Date.now() - 600_000,
    Geolocation.prototype.getCurrentPosition = received => (window.timesAsked += 1, received(
        {timestamp: window.positionFrom, coords: {latitude: 37.6360, longitude: 127.2165, accuracy: 12}})),
    document.dispatchEvent(new Event("visibilitychange")))"""
"""The browser hands out a position of ten minutes ago, however often it is asked."""
CHANGED_VISIBILITY = 'void document.dispatchEvent(new Event("visibilitychange"))'
LOCKED_TEN_MINUTES_AGO = """new Promise(done => { const o = indexedDB.open("app"); o.onsuccess = () => {
    const settings = o.result.transaction("settings", "readwrite").objectStore("settings");
    settings.put(Date.now() - 600_000, "hidden_ms").onsuccess = () => { o.result.close(); done(true); }; }; })"""


@pytest.fixture(scope="module")
def push_service() -> PushService:
    return PushService()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, push_service: PushService, packages: None) -> Iterator[RunningMesh]:
    settings = {"TANDEM_PUSH_SERVICES": push_service.origin}
    with running_mesh(tmp_path_factory.mktemp("browser") / "mesh", settings=settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seen(mesh: RunningMesh, push_service: PushService) -> AsyncIterator[HerPages]:
    korean = scene_on(mesh, push_service, language=contact_pb2.LANGUAGE_KOREAN)
    async with korean as scene, browser() as opened:
        yield HerPages(scene, opened)


async def test_she_connects_her_phone_and_it_reports(seen: HerPages) -> None:
    await seen.open("hers", "ko", at=HOME)
    await seen.clean("hers")
    await seen.browser("fill", page="hers", selector="#code", value="AAAA-AAAA-AAAA")
    await seen.browser("click", page="hers", selector="#enrol-form button")
    await until(
        lambda: seen.browser("eval", page="hers", expression="document.querySelector('#enrol-said').textContent")
    )
    assert await seen.browser("text", page="hers", selector="#enrol-said") == [
        "등록되지 않은 번호입니다. 번호를 다시 확인하십시오."
    ]
    await seen.shot("hers", "her-app-connect-ko")
    await seen.connect("hers", seen.scene.hers)
    await seen.browser("wait", page="hers", selector=SENT)
    await seen.clean("hers")
    assert await seen.browser("eval", page="hers", expression="document.title") == "오늘"
    await seen.shot("hers", "her-app-ko")


async def test_a_refused_location_is_said_of_her_phone_and_notices_still_come(seen: HerPages) -> None:
    await seen.open("other", "en")
    await seen.connect("other", seen.scene.others)
    await seen.browser("wait", page="other", selector="#health li")
    [health] = await seen.browser("text", page="other", selector="#health")
    assert "Location is off for this app" in health or "can't find its position" in health
    await seen.clean("other")


async def test_the_police_see_why_a_phone_is_silent_and_a_locked_screen_is_no_silence(seen: HerPages) -> None:
    console = seen.scene.mesh.now.console_url
    await seen.browser.sign_in("desk", console, "police", "ko")

    async def desk_says(device_id: str, selector: str, *words: str) -> None:
        async def said() -> bool:
            await seen.browser("open", page="desk", url=f"{console}/watched-devices/{device_id}", language="ko")
            text = " ".join(await seen.browser("text", page="desk", selector=selector))
            return any(word in text for word in words)

        await until(said)

    await desk_says(seen.scene.others, "#phone-location", "위치 사용 꺼짐", "위치를 찾지 못함")
    await desk_says(seen.scene.hers, "#phone-screen", "열려 있음")
    await seen.browser("eval", page="hers", expression=LOCK)
    await desk_says(seen.scene.hers, "#phone-screen", "화면 잠김")
    await desk_says(seen.scene.hers, "main", "위반이나 고장이 아닙니다")
    await seen.accessible("desk")
    await seen.shot("desk", "console-phone-locked-ko")
    # She is told from when to when nothing was sent.
    await seen.browser("eval", page="hers", expression=LOCKED_TEN_MINUTES_AGO)
    await seen.browser("eval", page="hers", expression=UNLOCK)
    away = "document.querySelector('#away').textContent"

    async def is_said() -> bool:
        return "화면에 없어 위치를 보내지 않았습니다" in await seen.browser("eval", page="hers", expression=away)

    await until(is_said)
    await desk_says(seen.scene.hers, "#phone-screen", "열려 있음")
    await seen.clean("hers")
    await seen.shot("hers", "her-app-after-a-locked-screen-ko")


async def test_she_is_warned_on_the_open_page_and_woken_by_a_message_without_content(seen: HerPages) -> None:
    await seen.scene.stage.warn()
    await seen.browser("wait", page="hers", selector=PRESENT)
    assert "2 km" in await seen.text("hers", "#present")
    await seen.clean("hers")
    await seen.shot("hers", "her-app-notice-ko")
    notice_id = await seen.eval("hers", "document.querySelector('#present').dataset.notice")

    async def displayed() -> bool:
        return bool(seen.scene.stored(notice_id)[1])

    await until(displayed)
    await seen.browser("push", page="hers", data=json.dumps({"v": 1}))
    shown = (
        "navigator.serviceWorker.ready.then(r => r.getNotifications()).then(n => n.map(e => e.title + e.body).join())"
    )
    assert await until(lambda: seen.browser("eval", page="hers", expression=shown)) == "새 소식"
    assert await seen.browser("text", page="other", selector="#present p, #notices li") == []

    # Each answer does the same thing at once.
    await seen.browser("click", page="hers", selector="#answers button:nth-child(2)")
    assert await seen.browser("text", page="hers", selector="#answers") == ["확인되었습니다."]

    async def answered() -> bool:
        return bool(seen.scene.stored(notice_id)[2])

    await until(answered)


async def test_a_repeated_position_is_reported_once_and_an_old_position_is_said_to_be_unknown(seen: HerPages) -> None:
    await seen.browser("eval", page="hers", expression=OLD_POSITION)

    async def said() -> bool:
        return "위치를 찾지 못합니다" in " ".join(await seen.browser("text", page="hers", selector="#health li"))

    async def kept() -> bool:
        return await seen.waiting("hers") > before

    await until(said)
    await seen.browser("offline", page="hers", offline=True)
    before = await seen.waiting("hers")
    for _ in range(3):
        await seen.browser("eval", page="hers", expression=CHANGED_VISIBILITY)
    await seen.browser("until", page="hers", condition="window.timesAsked >= 4")
    await seen.browser("eval", page="hers", expression=f"window.positionFrom += 1_000, {CHANGED_VISIBILITY}")
    await until(kept)
    assert await seen.waiting("hers") == before + 1
    await seen.browser("offline", page="hers", offline=False)
    await seen.browser("eval", page="hers", expression="void location.reload()")
    await seen.browser("wait", page="hers", selector="#health:empty")
    await seen.browser("wait", page="hers", selector=SENT)


async def test_without_a_network_nothing_is_lost_and_the_page_opens_all_the_same(seen: HerPages) -> None:
    await seen.browser("offline", page="hers", offline=True)
    for step in range(1, 4):
        await seen.browser("locate", page="hers", at=HOME | {"latitude": 37.6360 + step / 10_000})
        await seen.browser("eval", page="hers", expression=CHANGED_VISIBILITY)

        async def kept(least: int = step) -> bool:
            return await seen.waiting("hers") >= least

        await until(kept)
    assert "통신이 되지 않아" in (await seen.browser("text", page="hers", selector="#health"))[0]
    await seen.browser("eval", page="hers", expression="void location.reload()")
    await seen.browser("wait", page="hers", selector="#main:not([hidden])")
    assert await seen.waiting("hers") >= 3
    await seen.browser("offline", page="hers", offline=False)

    async def sent() -> bool:
        return await seen.waiting("hers") == 0

    await until(sent)
    await seen.browser("wait", page="hers", selector=SENT)


async def test_another_phone_for_the_device_ends_the_first(seen: HerPages) -> None:
    await seen.open("second", "en", at=HOME)
    await seen.connect("second", seen.scene.others)
    await seen.browser("wait", page="other", selector="#ended:not([hidden])")
    await seen.clean("other")


async def test_the_phone_keeps_no_name_no_notice_and_no_answer_of_the_api(seen: HerPages) -> None:
    cached = """caches.keys().then(async names => (await Promise.all(names.map(async name =>
        (await (await caches.open(name)).keys()).map(request => new URL(request.url).pathname)))).flat())"""
    paths = await seen.browser("eval", page="hers", expression=cached)
    assert paths and not [path for path in paths if path.startswith("/api")]
    assert await seen.browser("eval", page="hers", expression="document.cookie") == ""
    assert await seen.browser("eval", page="hers", expression="localStorage.length + sessionStorage.length") == 0
    with closing(sqlite3.connect(seen.scene.mesh.folder / "data" / "field" / "field.sqlite3")) as database:
        assert "protected person" not in str(database.execute("SELECT * FROM push_addresses").fetchall()).lower()


async def test_nothing_but_the_app_is_fetched_and_no_page_fails(seen: HerPages) -> None:
    found = await seen.browser("seen")
    console = seen.scene.mesh.now.console_url  # of the desk's page alone
    assert set(found["origins"]) == {seen.scene.url, console} and found["refusals"] == []
    assert not [fault for fault in found["faults"] if "Error" in fault]
