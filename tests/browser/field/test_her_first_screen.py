"""The first screen of her app in a real browser at 360x640, on a real mesh: the present instruction, the state without a connection,
the panic and 112 in each state, the silent panic, and the way out of the app.

`make test-browser` runs it; it needs Chromium and Node.js. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import unquote

import pytest
import pytest_asyncio

from services.client.actors import DESKS
from services.client.calls import call
from tandem.common.v1 import contact_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.browser.driver import Browser, browser
from tests.support.common.mesh import RunningMesh
from tests.support.field.her_page import HOME, LOCK, PRESENT, SENT, SMALL, UNCONFIRMED, UNLOCK, HerPages
from tests.support.field.phone import PushService
from tests.support.field.scene import Scene, scene_on, until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LANGUAGES = ("ko", "en")
CONTACT = {"ko": contact_pb2.LANGUAGE_KOREAN, "en": contact_pb2.LANGUAGE_ENGLISH}
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148"
TWO_MINUTES_MS = 121_000
SURELY_KNOWN_S = 2
"""The police's closing ends what their desk surely knew: what was decided 1 s before it, or earlier."""
TALL = {"width": 390, "height": 844}
NO_CONNECTION = {"ko": "기준, 연결되지 않음", "en": "no connection"}
CODE_IS_WRONG = {"ko": "쓰지 않는 글자", "en": "No code has this"}
CODE_IS_SHORT = {"ko": "지금 4자리를", "en": "You entered 4"}
ARRIVED = {"ko": "접수되었습니다", "en": "has arrived"}
NEEDS_POLICE = {"ko": "접근금지 결정", "en": "A restraining order protects me"}


class Both:
    """A person with her phone for each language, each with a wearer of her own, on one mesh."""

    def __init__(self, pages: dict[str, HerPages], browser: Browser) -> None:
        self.pages, self.browser = pages, browser

    async def shots(self, language: str, name: str) -> None:
        """Saves pictures of a state at two sizes."""
        hers = self.pages[language]
        await hers.shot(language, f"{name}-{language}")
        await self.browser("resize", page=language, **TALL)
        await hers.shot(language, f"{name}-{language}-tall")
        await self.browser("resize", page=language, **SMALL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(mesh: RunningMesh) -> AsyncIterator[Both]:
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(browser())
        pages = {}
        for language in LANGUAGES:
            scene = await stack.enter_async_context(scene_on(mesh, PushService(), language=CONTACT[language]))
            pages[language] = HerPages(scene, opened)
        yield Both(pages, opened)


async def police_close(scene: Scene) -> None:
    """The police take up their assignments to her, and close them: nobody was there."""
    police, identity = scene.clients.legs["police"].dispatch, scene.clients.identity(DESKS["police"])
    listed = await police.ListIncidents(dispatch_pb2.ListIncidentsRequest(), metadata=identity)
    for incident in listed.incidents:
        for assignment in incident.assignments:
            if assignment.subject_id != scene.stage.person_id or assignment.state == dispatch_pb2.CLOSED:
                continue
            id_ = assignment.assignment_id
            await call(police.Acknowledge, dispatch_pb2.AcknowledgeRequest(assignment_id=id_), identity)
            close = dispatch_pb2.CloseRequest(assignment_id=id_, cause=dispatch_pb2.NOBODY_FOUND)
            await call(police.Close, close, identity)


async def unconfirmed(hers: HerPages, page: str) -> None:
    """The page says that it has no connection, and nothing of where he is."""
    await hers.browser("wait", page=page, selector=UNCONFIRMED)
    assert NO_CONNECTION[page] in await hers.text(page, "#absent .as-of")
    shown = await hers.text(page, "#main")
    assert "112" in shown and not any(word in shown for word in ("km", " m ", "南", "남쪽", "south"))
    for selector in ("#present p", "#answers button", "#map:not([hidden])", "#earlier:not([hidden])"):
        assert await hers.browser("text", page=page, selector=selector) == []


@pytest.mark.parametrize("language", LANGUAGES)
async def test_112_is_there_before_the_phone_is_connected_and_a_wrong_code_is_said_to_be_wrong(
    both: Both, language: str
) -> None:
    hers = both.pages[language]
    await hers.open(language, language, at=HOME, clock=True, **SMALL)
    await hers.first_screen(language)
    assert not await hers.eval(language, "document.querySelector('#panic').checkVisibility()")
    await both.browser("fill", page=language, selector="#code", value="7kq2-mxo!")
    assert await hers.eval(language, "document.querySelector('#code').value") == "7KQ2-MXO!"
    said = await hers.text(language, "#enrol-said")
    assert CODE_IS_WRONG[language] in said and "O, !" in said
    await hers.first_screen(language)
    await both.shots(language, "her-app-wrong-code")
    await both.browser("fill", page=language, selector="#code", value="7kq2")
    await both.browser("click", page=language, selector="#enrol-form button")
    assert CODE_IS_SHORT[language] in await hers.text(language, "#enrol-said")
    await hers.connect(language, hers.scene.hers)
    await both.browser("wait", page=language, selector=SENT)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_without_an_instruction_the_panic_and_112_are_on_the_first_screen(both: Both, language: str) -> None:
    hers = both.pages[language]
    await both.browser("wait", page=language, selector="#instruction[data-state='none']")
    await hers.first_screen(language, "#panic")
    text = unquote(await hers.eval(language, "document.querySelector('#text-112').getAttribute('href')"))
    assert NEEDS_POLICE[language] in text and "37.63600, 127.21650" in text
    await both.shots(language, "her-app-no-notice")


async def test_an_iphone_begins_the_text_to_112_with_another_character(both: Both) -> None:
    hers = both.pages["ko"]
    await hers.open("iphone", "ko", agent=IPHONE, **SMALL)
    href = "document.querySelector('#text-112').getAttribute('href')"
    await both.browser("until", page="iphone", condition=f"{href}.startsWith('sms:112&body=')")


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_silent_panic_changes_nothing_that_can_be_seen_or_heard(
    both: Both, language: str, tmp_path: Path
) -> None:
    hers = both.pages[language]
    sounds = """void (window.noises = [], HTMLMediaElement.prototype.play = () => noises.push("sound"),
        AudioContext.prototype.resume = () => noises.push("sound"), Navigator.prototype.vibrate = () => noises.push("vibration"))"""
    await hers.eval(language, sounds)
    # The first picture of a page with a field changes its style attribute.
    await both.browser("shot", page=language, path=str(tmp_path / "before.png"))
    before, count_before = await hers.content(language), len(await hers.scene.panics(hers.scene.hers))
    await hers.press_silently(language)
    assert await hers.content(language) == before
    await until(hers.scene.offered_at_both)
    [(_, silent)] = (await hers.scene.panics(hers.scene.hers))[count_before:]
    assert silent
    assert await hers.content(language) == before
    await both.browser("shot", page=language, path=str(tmp_path / "after.png"))
    assert (tmp_path / "before.png").read_bytes() == (tmp_path / "after.png").read_bytes()
    assert await hers.eval(language, "noises") == []
    # Without a network neither, and nothing but the press happens on this page.
    await both.browser("offline", page=language, offline=True)
    # A request that waits for news may outlast its network for 25 s, and the next position leaves after 15 s.
    await both.browser.until(language, "document.querySelectorAll('#health li').length >= 2", patience_s=60)
    await both.browser("stop", page=language, stopped=True)
    before, kept = await hers.content(language), await hers.waiting(language)
    await hers.press_silently(language)

    async def is_kept() -> bool:
        return await hers.waiting(language) == kept + 1

    await until(is_kept)
    assert await hers.content(language) == before
    await both.browser("stop", page=language, stopped=False)
    await both.browser("offline", page=language, offline=False)

    async def arrived() -> bool:
        return len(await hers.scene.panics(hers.scene.hers)) == count_before + 2

    await until(arrived)
    await both.browser("wait", page=language, selector="#health:empty")
    # She is safe: the police close their assignment to her, and her phone may be heard again.
    await asyncio.sleep(SURELY_KNOWN_S)
    await police_close(hers.scene)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_instruction_is_first_with_its_answers_and_the_call_needs_two_decisions(
    both: Both, language: str
) -> None:
    hers = both.pages[language]
    await hers.scene.stage.warn()
    await both.browser("wait", page=language, selector=PRESENT)
    await hers.first_screen(language, "#panic", "#present .act", "#answers button:nth-child(3)")
    alike = "[e.offsetWidth, e.offsetHeight, getComputedStyle(e).background, getComputedStyle(e).color].join()"
    answers = await hers.eval(language, f"[...document.querySelectorAll('#answers button')].map(e => {alike})")
    assert len(answers) == 3 and len(set(answers)) == 1
    await both.shots(language, "her-app-instruction")
    notice_id = await hers.eval(language, "document.querySelector('#present').dataset.notice")

    async def displayed() -> bool:
        return bool(hers.scene.stored(notice_id)[1])

    await until(displayed)
    # Two touches of one place send nothing: the button under the finger has become another one.
    await both.browser("twice", page=language, selector="#panic")
    await hers.first_screen(language, "#panic-yes", "#panic-no")
    sizes = "['yes', 'no'].map(e => document.querySelector('#panic-' + e)).map(e => e.offsetWidth * e.offsetHeight)"
    send, cancel = await hers.eval(language, sizes)
    assert send > 3 * cancel
    await both.shots(language, "her-app-panic-asked")
    await hers.eval(language, LOCK)
    await hers.eval(language, UNLOCK)
    assert not await hers.eval(language, "document.querySelector('#panic-yes').checkVisibility()")
    assert await hers.text(language, "#panic-said") == ""


@pytest.mark.parametrize("language", LANGUAGES)
async def test_what_nobody_confirmed_for_two_minutes_gives_way_to_advice_without_a_direction(
    both: Both, language: str
) -> None:
    hers = both.pages[language]
    # A request that waits on a dead network confirms nothing.
    await both.browser("hang", page=language, path="**/api/notices*", hang=True)
    await hers.eval(language, UNLOCK)  # a request of before is given up
    await both.browser("forward", page=language, ms=TWO_MINUTES_MS - 31_000)
    assert await both.browser("text", page=language, selector=PRESENT) != []
    await both.browser("forward", page=language, ms=31_000)
    await unconfirmed(hers, language)
    await hers.first_screen(language, "#panic", "#absent .as-of")
    await both.shots(language, "her-app-no-connection")
    as_of = await hers.text(language, "#absent .as-of")
    # Nothing of it is on the phone: an app that is opened without a network knows when it was confirmed, and no text.
    await both.browser("offline", page=language, offline=True)
    await hers.reopen(language)
    await unconfirmed(hers, language)
    assert await hers.text(language, "#absent .as-of") == as_of
    await hers.first_screen(language, "#panic")
    await both.browser("offline", page=language, offline=False)
    await both.browser("hang", page=language, path="**/api/notices*", hang=False)
    await hers.eval(language, UNLOCK)
    await both.browser("wait", page=language, selector=PRESENT)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_nearer_approach_replaces_the_instruction_and_the_earlier_one_is_folded(
    both: Both, language: str
) -> None:
    hers = both.pages[language]
    first = await hers.eval(language, "document.querySelector('#present').dataset.notice")
    await hers.scene.stage.notify()
    await hers.scene.stage.respond()
    await both.browser(
        "until", page=language, condition=f"document.querySelector('#present').dataset.notice !== '{first}'"
    )
    await both.browser("wait", page=language, selector="#earlier:not([hidden])")
    assert not await hers.eval(language, "document.querySelector('#earlier').open")
    assert await both.browser("text", page=language, selector="#notices li:first-child p") == [""]
    await hers.first_screen(language, "#panic", "#present .act")
    await both.shots(language, "her-app-instruction-near")


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_panic_without_a_network_or_mesh_is_kept_and_delivered_once(
    both: Both, mesh: RunningMesh, language: str
) -> None:
    hers = both.pages[language]
    count_before = len(await hers.scene.panics(hers.scene.hers))
    is_offline = language == "ko"
    killed: dict[str, int] = {}
    if is_offline:
        await both.browser("offline", page=language, offline=True)
    else:
        killed = mesh.kill("ingest", "field")
    await both.browser("click", page=language, selector="#panic")
    await both.browser("forward", page=language, ms=1_000)
    await both.browser("click", page=language, selector="#panic-yes")
    await both.browser("wait", page=language, selector="#panic-said:not(:empty)")
    await hers.first_screen(language, "#panic")
    await both.shots(language, "her-app-panic-sending")
    if is_offline:
        await hers.reopen(language)
        await both.browser("wait", page=language, selector="#panic-said:not(:empty)")
        await both.browser("offline", page=language, offline=False)
    else:
        await mesh.wait_until_returned(killed)

    async def arrived() -> bool:
        return len(await hers.scene.panics(hers.scene.hers)) > count_before

    await until(arrived)
    said = "document.querySelector('#panic-said').textContent"
    await both.browser("until", page=language, condition=f"{said}.includes('{ARRIVED[language]}')")
    [(_, silent)] = (await hers.scene.panics(hers.scene.hers))[count_before:]
    assert not silent
    await hers.first_screen(language, "#panic")
    await both.shots(language, "her-app-panic-sent")


@pytest.mark.parametrize("language", LANGUAGES)
async def test_one_neutral_line_tells_of_any_number_of_messages(both: Both, language: str) -> None:
    hers = both.pages[language]
    for _ in range(3):
        await both.browser("push", page=language, data=json.dumps({"v": 1}))
    shown = "navigator.serviceWorker.ready.then(r => r.getNotifications()).then(n => n.map(e => [e.title, e.body, e.silent]))"
    line = {"ko": "새 소식", "en": "News"}[language]

    async def is_shown() -> bool:
        return bool(await hers.eval(language, shown) == [[line, "", True]])

    await until(is_shown)
    await hers.eval(language, UNLOCK)  # she looks at the app
    await both.browser("until", page=language, condition=f"{shown}.then(n => n.length === 0)")


@pytest.mark.parametrize("language", LANGUAGES)
async def test_she_leaves_without_a_network_for_a_calendar_from_which_no_way_back_leads_to_the_app(
    both: Both, language: str
) -> None:
    hers = both.pages[language]
    count_before = len(await hers.scene.panics(hers.scene.hers))
    await both.browser("offline", page=language, offline=True)
    await both.browser("click", page=language, selector="#exit")
    await both.browser("wait", page=language, selector="td[aria-current] button")
    await hers.clean(language)
    await both.shots(language, "her-app-calendar")
    text = await hers.text(language, "body")
    assert not any(word in text for word in ("112", "경찰", "police", "알림", "otice"))
    assert await both.browser("back", page=language) in ("", "about:blank")
    await both.browser("open", page=language, url=f"{hers.scene.url}/today.html", language=language)
    # Her phone goes on reporting, and the silent call works here, too.
    await hers.press_silently(language)
    await both.browser("offline", page=language, offline=False)

    async def arrived() -> bool:
        return len(await hers.scene.panics(hers.scene.hers)) == count_before + 1 and await hers.waiting(language) == 0

    await until(arrived)
    await both.browser("click", page=language, selector="td[aria-current] button")
    assert await hers.eval(language, "location.pathname") == "/today.html"
    await both.browser("twice", page=language, selector="td[aria-current] button")
    await both.browser("wait", page=language, selector=PRESENT)
    assert await hers.text(language, "#away") == ""


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_all_clear_takes_the_place_of_the_instruction_and_asks_nothing(both: Both, language: str) -> None:
    hers = both.pages[language]
    await hers.scene.stage.end_order()
    await both.browser("wait", page=language, selector="#instruction.over #present p")
    assert await both.browser("text", page=language, selector="#answers button") == []
    await hers.first_screen(language, "#panic", "#present .act")
    await both.shots(language, "her-app-over")


@pytest.mark.parametrize("language", LANGUAGES)
async def test_112_is_there_when_another_phone_replaced_this_one(both: Both, language: str) -> None:
    hers = both.pages[language]
    async with hers.scene.enrolled(hers.scene.hers):
        await both.browser("wait", page=language, selector="#ended:not([hidden])")
        await hers.first_screen(language)
        assert not await hers.eval(language, "document.querySelector('#panic').checkVisibility()")
        await both.shots(language, "her-app-ended")
