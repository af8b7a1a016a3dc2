"""The live page in a real browser on a real mesh: the card in words, names by disclosure, notes, and answers that come too late.

`make test-browser` runs it. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest
import pytest_asyncio

from services.client import demo, drill
from services.client import mesh as meshes
from services.client.actors import VENDOR, Alerts
from services.common import times
from services.console.pages.texts import TEXTS
from tandem.dispatch.v1 import dispatch_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.browser.driver import HERE, Browser, browser
from tests.support.common.mesh import PATIENCE_S, RunningMesh

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = HERE.parents[1]
COLLEAGUE = "spiffe://npa/desk/colleague"
LANGUAGES = {"police": "ko", "probation": "en", "reviewer": "en", "operator": "en"}
MARKUP = "<img src=x onerror=document.title='run'> & \"고함\""


class Watched:
    """The demo up to its offers, with the desks' live pages."""

    def __init__(
        self, mesh: RunningMesh, stage: demo.DemoStage, plan: demo.Plan, *, alerts: Alerts, seen: Browser
    ) -> None:
        self.mesh = mesh
        self.stage = stage
        self.plan = plan
        self.browser = seen
        self.url = mesh.now.console_url
        self.incident_id = next(seen.alert.incident_id for seen in alerts.seen if seen.alert.incident_id)

    async def text(self, page: str, selector: str) -> str:
        """The text of an element."""
        return "\n".join(await self.browser("text", page=page, selector=selector))

    async def until(self, page: str, condition: str) -> None:
        """Waits until an expression is true on a page."""
        await self.browser.until(page, condition, PATIENCE_S)

    async def choose(self, page: str) -> None:
        """Opens the live page and chooses the demo's incident."""
        await self.browser("open", page=page, url=self.url)
        await self.browser("wait", page=page, selector="#connection.ok")
        row = f"#incidents li[data-incident='{self.incident_id}']"
        await self.browser("click", page=page, selector=f"{row} .pick")
        await self.browser("wait", page=page, selector=f"#card[data-incident='{self.incident_id}']")

    async def shot(self, page: str, name: str) -> None:
        """Saves a picture for the documentation, where TANDEM_SHOTS is set."""
        if folder := os.environ.get("TANDEM_SHOTS"):
            await asyncio.sleep(3)  # the map's tiles
            await self.browser("shot", page=page, path=f"{ROOT / folder}/{name}.png")

    async def own(self, leg: str) -> list[dispatch_pb2.Assignment]:
        """The leg's assignments of the incident."""
        listed = await self.stage.clients.legs[leg].dispatch.ListIncidents(
            dispatch_pb2.ListIncidentsRequest(incident_id=self.incident_id),
            metadata=self.stage.clients.identity(COLLEAGUE if leg == "police" else "spiffe://moj/desk/colleague"),
        )
        number = {"probation": 1, "police": 2}[leg]
        return [assignment for assignment in listed.incidents[0].assignments if assignment.leg == number]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(mesh: RunningMesh) -> AsyncIterator[Watched]:
    plan = demo.new_plan()
    async with (
        browser() as seen,
        meshes.connect(mesh.now) as clients,
        demo.stage(clients, plan) as stage,
        Alerts(clients, (plan.id("order"),)) as alerts,
    ):
        for role, language in LANGUAGES.items():
            await seen.sign_in(role, mesh.now.console_url, role, language)
        for name, _, act in demo.STEPS:
            await act(stage)
            if name == "respond":
                break
        watching = Watched(mesh, stage, plan, alerts=alerts, seen=seen)
        for page in ("police", "probation"):
            await watching.choose(page)
        yield watching


async def test_the_buttons_stay_while_the_time_that_is_left_runs(watched: Watched) -> None:
    """A click on a button that is replaced while it is pressed is lost."""
    stays = """(() => {
        const [said, button] = [".next", "[data-act^=acknowledge]"].map((part) => document.querySelector(`#card-own ${part}`));
        if (said?.textContent.includes("기한은 없습니다")) return true;
        const before = window.kept;
        window.kept = { button, said: said?.textContent };
        return before?.button?.isConnected && before.said !== said?.textContent;
    })()"""
    await watched.until("police", stays)


async def test_the_card_says_in_words_where_the_wearer_is_and_what_is_due(watched: Watched) -> None:
    await watched.until("police", "document.querySelector('#card-where').textContent.includes('금곡동')")
    where = await watched.text("police", "#card-where")
    assert re.search(r"\d+초 전 위치, 오차 \d+ m", where), where
    assert re.search(r"보호장소에(서 [동서남북]+쪽 .*m| 있을 수 있음)", where), where
    assert re.search(
        r"까지 접수하십시오 \(\d+초 (남음|지남)\)|기한은 없습니다", await watched.text("police", "#card-own")
    )
    others = await watched.text("police", "#card-others")
    # On a busy machine the offer may have gone on to the next level.
    assert re.search(r"보호관찰: [^.]+\. 요청 [0-9:]+\.", others) and "피해자 알림:" in others
    assert "이탈" not in await watched.text("police", "#card-head") and "접근" in await watched.text(
        "police", "#card-head"
    )
    limited = await watched.text("probation", "#card-where")
    assert "Probation isn't told where she is" in limited
    assert "보호장소" not in limited and watched.stage.person_id not in await _html(watched, "probation")


async def test_choosing_a_row_fits_the_map_to_the_incident(watched: Watched) -> None:
    await watched.browser("wait", page="police", selector=f"#map[data-fitted='{watched.incident_id}']")
    lon, lat = map(float, (await watched.browser("eval", page="police", expression="map.dataset.centre")).split())
    assert abs(lon - demo.HOME.lon_deg) < 0.05 and abs(lat - demo.HOME.lat_deg) < 0.05


async def test_names_come_by_disclosure_with_one_row_of_the_ledger(watched: Watched) -> None:
    assert "Demo respondent" not in await _html(watched, "police")
    await watched.browser("press", page="police", key="w")
    await watched.browser("wait", page="police", selector="#ask-names[open]")
    await watched.browser("press", page="police", key="Enter")
    await watched.browser("wait", page="police", selector="#card-who .named")
    who = await watched.text("police", "#card-who")
    assert "Demo respondent" in who and "Demo protected person" in who
    with closing(sqlite3.connect(next(watched.mesh.folder.rglob("registry.sqlite3")), timeout=10)) as connection:
        rows = connection.execute(
            "select record_kind, who from ledger where deed = 'READ' and reference = ?", (watched.incident_id,)
        ).fetchall()
    assert rows == [("ORDER", "spiffe://npa/desk/console/police-1")]
    assert "Demo respondent" not in await _html(watched, "probation")


async def test_both_desks_read_a_note_and_markup_stays_text(watched: Watched) -> None:
    await watched.browser("press", page="police", key="n")
    await watched.browser("fill", page="police", selector="#note-form input[name=text]", value=MARKUP)
    await watched.browser("press", page="police", key="Enter")
    for page in ("police", "probation"):
        await watched.browser("wait", page=page, selector="#notes li")
        assert MARKUP in await watched.text(page, "#notes")
        assert await watched.browser("eval", page=page, expression="document.querySelector('#notes img') === null")
        assert await watched.browser("eval", page=page, expression="document.title") != "run"


async def test_a_call_that_is_kept_stays_with_its_desk(watched: Watched) -> None:
    choose = """(() => {
        const form = document.querySelector("#note-form");
        form.kind.value = "CALLED_OTHER_DESK";
        form.kind.dispatchEvent(new Event("change"));
        form.result.value = "NOTED_NO_ANSWER";
        form.share.checked = false;
    })()"""
    await watched.browser("eval", page="probation", expression=choose)
    await watched.browser("click", page="probation", selector="#note-form button")
    await watched.until("probation", "document.querySelectorAll('#notes li').length === 2")
    assert "Call to the other desk, No answer" in await watched.text("probation", "#notes li:first-child")
    await watched.browser(
        "fill", page="probation", selector="#note-form input[name=text]", value="a later note for both"
    )
    await watched.browser("click", page="probation", selector="#note-form button")
    await watched.until("police", "document.querySelector('#notes').textContent.includes('a later note for both')")
    assert "통화" not in await watched.text("police", "#notes")


async def test_an_answer_from_an_old_page_and_a_second_officer_get_stated_answers(watched: Watched) -> None:
    first, *_ = await watched.own("police")
    keep = f"""window.old = document.querySelector("[data-act='acknowledge {first.assignment_id}']"); Boolean(window.old)"""
    assert await watched.browser("eval", page="police", expression=keep)
    leg = watched.stage.clients.legs["police"].dispatch
    me = watched.stage.clients.identity(COLLEAGUE)
    await leg.Acknowledge(dispatch_pb2.AcknowledgeRequest(assignment_id=first.assignment_id), metadata=me)
    await watched.browser("eval", page="police", expression="window.old.click()")
    await watched.browser("wait", page="police", selector="#card-refusal:not([hidden])")
    assert "다른 사람이 먼저 접수했습니다" in await watched.text("police", "#card-refusal")
    assert COLLEAGUE in await watched.text("police", "#card-refusal")
    # The dialog stays open while the colleague goes on: its answer is about a state that is over.
    refuse = f"[data-act='reject {first.assignment_id}']"
    await watched.until("police", f"document.querySelector(\"[data-act='open {first.assignment_id}']\")")
    await watched.browser("click", page="police", selector=refuse)
    progress = dispatch_pb2.ProgressRequest(assignment_id=first.assignment_id, state=dispatch_pb2.DISPATCHED)
    await leg.Progress(progress, metadata=me)
    await watched.browser("fill", page="police", selector="#ask-reject input[name=reason]", value="too late")
    await watched.browser("click", page="police", selector="#ask-reject button.main")
    await watched.until("police", "document.querySelector('#card-refusal').textContent.includes('상태가 바뀌었습니다')")
    (now,) = [to for to in await watched.own("police") if to.assignment_id == first.assignment_id]
    assert now.state == dispatch_pb2.DISPATCHED


async def test_two_officers_who_accept_the_same_offer_get_stated_answers(watched: Watched) -> None:
    officers = {"spiffe://npa/desk/console/police-1": "police", "spiffe://npa/desk/console/police-2": "second"}
    await watched.browser.sign_in("second", watched.url, "police", "ko", name="police-2")
    for page in officers.values():
        await watched.choose(page)
    offered = [to for to in await watched.own("police") if to.state in (dispatch_pb2.OFFERED, dispatch_pb2.ESCALATED)]
    button = f"document.querySelector(\"[data-act='acknowledge {offered[0].assignment_id}']\")"
    for page in officers.values():
        await watched.until(page, f"window.mine = {button}")
    for page in officers.values():
        await watched.browser("eval", page=page, expression="window.mine.click()")
    for page in officers.values():
        await watched.until(page, f"!{button}")
    (now,) = [to for to in await watched.own("police") if to.assignment_id == offered[0].assignment_id]
    assert now.state == dispatch_pb2.ACKNOWLEDGED
    has_it = officers.pop(now.acknowledged_by)
    (late,) = officers.values()
    await watched.until(late, "!document.querySelector('#card-refusal').hidden")
    assert "다른 사람이 먼저 접수했습니다" in await watched.text(late, "#card-refusal")
    assert now.acknowledged_by in await watched.text(late, "#card-refusal")
    assert await watched.browser("eval", page=has_it, expression="document.querySelector('#card-refusal').hidden")
    for page in (has_it, late):
        assert now.acknowledged_by.split("/")[-1] in await watched.text(page, "#card-own")


async def test_a_double_click_and_a_held_key_report_no_second_step(watched: Watched) -> None:
    (to,) = [to for to in await watched.own("police") if to.state == dispatch_pb2.ACKNOWLEDGED]
    progress = dispatch_pb2.ProgressRequest(assignment_id=to.assignment_id, state=dispatch_pb2.DISPATCHED)
    await watched.stage.clients.legs["police"].dispatch.Progress(
        progress, metadata=watched.stage.clients.identity(COLLEAGUE)
    )
    await watched.choose("police")
    button = f"""document.querySelector("[data-act='progress {to.assignment_id}']")"""
    await watched.until("police", button)
    watch = """window.steps = 0; window.realFetch = window.fetch; window.fetch = (path, ...rest) => {
        if (String(path).endsWith("/progress")) window.steps += 1;
        return window.realFetch(path, ...rest);
    }; true"""
    await watched.browser("eval", page="police", expression=watch)
    click = f"{button}.dispatchEvent(new MouseEvent('click', {{ bubbles: true, detail: %d }})) && window.steps"
    held = "document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 's', repeat: true, bubbles: true })) && window.steps"
    for press, steps in ((click % 2, 0), (held, 0), (click % 1, 1)):
        assert await watched.browser("eval", page="police", expression=press) == steps, press
    await watched.until("police", f"{button}?.textContent.includes('도착')")


async def test_markup_in_a_handover_stays_text(watched: Watched) -> None:
    await watched.browser("open", page="second", url=f"{watched.url}/handover")
    await watched.browser("fill", page="second", selector="textarea[name=notes]", value=MARKUP)
    await watched.browser("click", page="second", selector="#write")
    await watched.browser("wait", page="second", selector="section[aria-labelledby=h-waiting] article")
    assert MARKUP in await watched.text("second", "section[aria-labelledby=h-waiting] article")
    markup = "document.querySelector('main img') !== null || document.title === 'run'"
    assert await watched.browser("eval", page="second", expression=markup) is False


async def test_another_roles_incident_has_a_stated_answer(watched: Watched) -> None:
    unknown = await _fetch(watched, "police", "/incidents/incident-unknown/card")
    assert unknown["status"] == 404 and "소속 기관의 대상이 아닙니다" in unknown["text"]
    names = await _fetch(watched, "police", "/incidents/incident-unknown/names", "legal_basis=TAG_DECREE_23_10")
    assert names["status"] == 404
    nothing = await _fetch(watched, "police", f"/incidents/{watched.incident_id}/names", "legal_basis=")
    assert nothing["status"] == 400 and "근거 조문" in nothing["text"]
    reviewer = await _fetch(watched, "reviewer", f"/incidents/{watched.incident_id}/notes", "kind=NOTE&key=k&text=x")
    assert reviewer["status"] == 403
    assert (await _fetch(watched, "operator", f"/incidents/{watched.incident_id}/card"))["status"] == 403
    empty = await _fetch(watched, "police", f"/incidents/{watched.incident_id}/notes", "kind=NOTE&key=k&text=%20")
    assert empty["status"] == 400 and "입력해야 합니다" in empty["text"]
    # The whole page of an incident, by a link that somebody passed on.
    for path, status in ((f"/incidents/{watched.incident_id}", 403), ("/incidents/incident-unknown", 403)):
        assert await watched.browser("open", page="operator", url=f"{watched.url}{path}") == status
        assert TEXTS[f"error_{status}"][1] in await watched.text("operator", "main")
        assert watched.stage.wearer_id not in await _html(watched, "operator")
    assert await watched.browser("open", page="reviewer", url=f"{watched.url}/incidents/incident-unknown") == 404
    assert TEXTS["error_404"][1] in await watched.text("reviewer", "main")


async def test_the_page_fills_the_screen_in_both_themes_and_is_accessible(watched: Watched) -> None:
    for theme in ("dark", "light"):
        await watched.browser("click", page="police", selector=f".to-{theme}")
        await watched.browser("wait", page="police", selector=f"html[data-theme={theme}]")
        await watched.choose("police")
        await watched.browser("press", page="police", key="w")
        await watched.browser("press", page="police", key="Enter")
        await watched.browser("wait", page="police", selector="#card-who .named")
        for width, height in ((1440, 900), (1920, 1080)):
            await watched.browser("resize", page="police", width=width, height=height)
            await watched.browser("press", page="police", key="f")
            await watched.until("police", "document.querySelector('#card-where').textContent.includes('금곡동')")
            sizes = await watched.browser("eval", page="police", expression=_SIZES)  # the queue has 9rem at least
            assert sizes["beyond"] <= 0 and all(box[0] > 250 and box[1] > 141 for box in sizes["boxes"]), (width, sizes)
            found = await watched.browser("axe", page="police")
            assert [finding for finding in found if finding["impact"] in ("serious", "critical")] == [], theme
            if (theme, width) == ("dark", 1920):
                await watched.shot("police", f"console-live-{theme}-{width}")
    await watched.browser("press", page="probation", key="?")
    await watched.browser("wait", page="probation", selector="#help[open]")
    await watched.browser("press", page="probation", key="Escape")
    await watched.browser("wait", page="probation", selector="#help:not([open])")


async def test_an_exercise_moves_neither_the_map_nor_the_card(watched: Watched) -> None:
    await watched.choose("police")
    await watched.until(
        "police", f"/\\b100\\b/.test(map.dataset.rings) && map.dataset.fitted === '{watched.incident_id}'"
    )
    watch = """new MutationObserver(() => {
        if (document.querySelector("#incidents .exercise")) window.sawExercise = true;
        if (document.querySelector("#card")?.dataset.incident !== window.chosenId) window.cardMoved = true;
    }).observe(document.body, { subtree: true, childList: true, attributes: true });
    window.chosenId = document.querySelector("#card").dataset.incident;"""
    await watched.browser("eval", page="police", expression=watch)
    before = await watched.browser("eval", page="police", expression="map.dataset.centre")
    await drill.Drill(watched.stage.clients, True, PATIENCE_S).run()
    await watched.until("police", "window.sawExercise === true")
    after = await watched.browser("eval", page="police", expression="[map.dataset.centre, window.cardMoved ?? false]")
    assert after == [before, False]


async def test_a_low_battery_is_a_notice_with_the_charge_and_a_link_to_the_device(watched: Watched) -> None:
    clients, app = watched.stage.clients, watched.plan.id("app")
    position = ingest_pb2.Position(
        device_id=app,
        report_id="low-battery",
        fix_time=times.to_timestamp(clients.clock.now_ms()),
        lat_deg=demo.HOME.lat_deg,
        lon_deg=demo.HOME.lon_deg,
        accuracy_m=10,
        battery_pct=12,
    )
    request = ingest_pb2.ReportBatchRequest(positions=[position])
    answer = await clients.ingest.ReportBatch(request, metadata=clients.identity(VENDOR))
    assert not answer.refusals
    link = f"#alerts a[href='/watched-devices/{app}']"
    await watched.until("police", f'document.querySelector("{link}")')
    notice = await watched.browser(
        "eval", page="police", expression=f'document.querySelector("{link}").closest("li").textContent'
    )
    assert "12 %" in notice and "배터리" in notice
    await watched.browser("click", page="police", selector=link)
    await watched.browser("wait", page="police", selector="#h-now")
    assert "12 %" in await watched.text("police", "main")
    assert await watched.browser("eval", page="probation", expression=f'document.querySelector("{link}") === null')


async def test_an_incident_that_is_over_gives_way_but_not_under_an_officers_hands(watched: Watched) -> None:
    for page in ("police", "second"):
        await watched.browser("open", page=page, url=watched.url)
        await watched.browser("wait", page=page, selector=f"#card[data-incident='{watched.incident_id}']")
    await watched.browser("click", page="police", selector="#card-head strong")
    await watched.stage.acknowledge()
    await watched.stage.stand_down()
    plan = demo.new_plan()
    async with demo.stage(watched.stage.clients, plan) as stage:
        for name, _, act in demo.STEPS:
            await act(stage)
            if name == "respond":
                break
        is_new = f"card.dataset.incident !== '{watched.incident_id}'"
        await watched.until("second", f"{is_new} && card.querySelector('.demand-RESPOND')")
        await watched.until("police", "!document.querySelector('#more-urgent').hidden")
        assert not await watched.browser("eval", page="police", expression=is_new)
        await watched.browser("press", page="police", key="u")
        await watched.until("police", is_new)


_SIZES = """(() => ({
    beyond: document.documentElement.scrollWidth - innerWidth,
    boxes: [...document.querySelectorAll("main > section")].map((box) => [box.clientWidth, box.clientHeight]),
}))()"""


async def _html(watched: Watched, page: str) -> str:
    html: str = await watched.browser("eval", page=page, expression="document.querySelector('main').outerHTML")
    return html


async def _fetch(watched: Watched, page: str, path: str, form: str | None = None) -> dict[str, Any]:
    """Requests a path as the page would; with a form, by POST."""
    sent = "undefined" if form is None else f"'{form}'"
    answer: dict[str, Any] = await watched.browser(
        "eval",
        page=page,
        expression=f"""(async (body) => {{
            const csrf = document.querySelector("input[name=csrf]").value;
            const headers = body === undefined ? {{}} : {{
                "X-CSRF-Token": csrf, "Content-Type": "application/x-www-form-urlencoded" }};
            const answer = await fetch("{path}", {{ method: body === undefined ? "GET" : "POST", body, headers }});
            return {{ status: answer.status, text: await answer.text() }};
        }})({sent})""",
    )
    return answer
