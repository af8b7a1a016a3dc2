"""Match reviews in a real browser on a real mesh: an undecided one alarms both agencies, and a desk decides it with two clicks.

The mesh's clock runs fast, so that 15 minutes pass in seconds. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from services.client import mesh as meshes
from services.client.mesh import Clients
from tandem.registry.v1 import review_pb2
from tests.browser.driver import HERE, Browser, browser
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh
from tests.support.dispatch.receivers import Receiver, receiver_entry
from tests.support.registry.undecided import ADDRESS, NAME, put_undecided_records

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = HERE.parents[1]
RATE = 100
LANGUAGES = {"police": "ko", "probation": "en"}
TEXT_WITHOUT_IDS = """(main => {
    for (const id of main.querySelectorAll("code, time, option, input")) id.remove();
    return main.textContent;
})(document.querySelector("main").cloneNode(true))"""


class Alarmed(NamedTuple):
    """A mesh with one undecided review, both desks' live pages, and a receiver of both legs' webhooks."""

    url: str
    browser: Browser
    clients: Clients
    receiver: Receiver
    case_id: str

    async def until(self, page: str, selector: str) -> None:
        """Waits for an element longer than the browser's own patience."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(AssertionError):
                    await self.browser("wait", page=page, selector=selector)
                    return

    async def open_review(self, page: str) -> None:
        """Opens both records from the list. A registry that is too slow for the page is asked once more."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(AssertionError):
                    await self.browser("open", page=page, url=f"{self.url}/reviews")
                    await self.browser("click", page=page, selector=f"tr.alarm[data-case='{self.case_id}'] button.open")
                    await self.browser("wait", page=page, selector="#sides")
                    return

    async def text(self, page: str, selector: str) -> str:
        """The text of the first such element."""
        return str((await self.browser("text", page=page, selector=selector))[0])

    async def shot(self, page: str, name: str, at: str = "body") -> None:
        """Saves a picture for the documentation, from this element on, where TANDEM_SHOTS is set."""
        if folder := os.environ.get("TANDEM_SHOTS"):
            await self.browser("eval", page=page, expression=f"document.querySelector('{at}').scrollIntoView()")
            await self.browser("shot", page=page, path=f"{ROOT / folder}/{name}.png")

    async def require_accessible(self, page: str) -> None:
        """Axe finds nothing serious on a page, and the page fits the windows of a desk."""
        for width in (1920, 1440):
            await self.browser("resize", page=page, width=width, height=900)
            found = await self.browser("axe", page=page)
            assert [finding for finding in found if finding["impact"] in ("serious", "critical")] == []
            beyond = await self.browser(
                "eval", page=page, expression="document.documentElement.scrollWidth - innerWidth"
            )
            assert beyond <= 0, (page, width)

    def announced(self) -> set[tuple[str, str, str]]:
        """Leg, state and case of the webhook messages so far."""
        messages = [json.loads(body) for _, body in self.receiver.requests]
        return {
            (message["leg"], message["state"], message["case_id"])
            for message in messages
            if message["type"] == "tandem.registry.v1.AlarmedReview"
        }

    async def until_announced(self, *states: str) -> None:
        """Waits until both legs' receivers know these states of the review."""
        wanted = {(leg, state, self.case_id) for leg in LANGUAGES for state in states}
        async with asyncio.timeout(PATIENCE_S):
            while not self.announced() >= wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def state(self) -> review_pb2.Review:
        """The review as the registry has it."""
        answer = await self.clients.registry.ListReviews(
            review_pb2.ListReviewsRequest(states=list(review_pb2.ReviewState.values())[1:]),
            metadata=self.clients.identity("spiffe://npa/desk/test"),
        )
        (found,) = [review for review in answer.reviews if review.case_id == self.case_id]
        return found


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, packages: None) -> Iterator[RunningMesh]:
    folder: Path = tmp_path_factory.mktemp("browser")
    webhooks = folder / "webhooks.json"
    webhooks.write_text(json.dumps([receiver_entry(receiver)]))
    settings = {"TANDEM_WEBHOOKS": str(webhooks)}
    with running_mesh(folder / "mesh", "--clock-rate", str(RATE), settings=settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alarmed(mesh: RunningMesh, receiver: Receiver) -> AsyncIterator[Alarmed]:
    async with receiver.serving(), browser() as seen, meshes.connect(mesh.now) as clients:
        for role in ("police", "probation", "reviewer", "operator"):
            await seen.sign_in(role, mesh.now.console_url, role, LANGUAGES.get(role, "en"))
        await put_undecided_records(clients)
        answer = await clients.registry.ListReviews(
            review_pb2.ListReviewsRequest(), metadata=clients.identity("spiffe://npa/desk/test")
        )
        (review,) = answer.reviews
        yield Alarmed(mesh.now.console_url, seen, clients, receiver, review.case_id)


async def test_a_review_left_alone_for_15_minutes_alarms_both_agencies(alarmed: Alarmed) -> None:
    for page in LANGUAGES:
        await alarmed.until(page, "#review-badge.alarm:not([hidden])")
        await alarmed.until(page, "#review-alarm:not([hidden])")
    assert "15분 넘게" in await alarmed.text("police", "#review-alarm")
    assert "more than 15 minutes" in await alarmed.text("probation", "#review-alarm")
    badge = re.fullmatch(r"1 · (\d+)분", (await alarmed.text("police", "#review-badge")).strip())
    assert badge and int(badge[1]) >= 15
    await alarmed.until_announced("RAISED")
    await alarmed.require_accessible("police")
    await alarmed.shot("police", "console-live-review-alarm")


async def test_its_page_is_for_the_desks_alone(alarmed: Alarmed) -> None:
    for role in ("reviewer", "operator"):
        for path in ("/reviews", f"/reviews/{alarmed.case_id}"):
            assert await alarmed.browser("open", page=role, url=f"{alarmed.url}{path}") == 403
            text = await alarmed.browser("eval", page=role, expression="document.documentElement.outerHTML")
            assert NAME not in text and "1978" not in text


async def test_both_records_are_side_by_side_in_the_readers_language(alarmed: Alarmed) -> None:
    for page in LANGUAGES:
        await alarmed.browser("open", page=page, url=f"{alarmed.url}/reviews")
        await alarmed.require_accessible(page)
        await alarmed.open_review(page)
        await alarmed.require_accessible(page)
        sides = await alarmed.browser("text", page=page, selector="#sides tbody tr")
        assert sum(NAME in row for row in sides) == 1 and len(sides) == 6
        marks = await alarmed.browser("text", page=page, selector="mark")
        assert marks == ["9", "8", "3", "2"]  # of the year of birth, and of the telephone
        whole = await alarmed.browser("eval", page=page, expression="document.documentElement.outerHTML")
        assert (ADDRESS in whole) is (page == "probation")
    await alarmed.shot("police", "console-match-review-ko")
    korean = await alarmed.browser("eval", page="police", expression=TEXT_WITHOUT_IDS)
    assert set(re.findall(r"[A-Za-z]+", korean)) <= {"m"}, korean
    assert "한 해 차이" in korean and "전화번호가 한 자리 다름" in korean


async def test_a_desk_decides_it_with_two_clicks_and_the_alarm_is_over_for_both(alarmed: Alarmed) -> None:
    # The probation desk has the page open from the test before, and looks at its live page in another window.
    await alarmed.open_review("police")
    await alarmed.browser("click", page="police", selector="#act-confirm summary")
    causes = await alarmed.text("police", "#act-confirm")
    assert "지금부터 이 명령이 피부착자의 위치로 집행됩니다" in causes and "2,000 m" in causes
    assert "보호관찰은 피부착자에게, 경찰은 피해자에게 동시에 출동" in causes
    await alarmed.require_accessible("police")
    await alarmed.shot("police", "console-match-review-answer-ko", at="#h-answers")
    await alarmed.browser("fill", page="police", selector="#act-confirm input[name=reason]", value="사진 대조")
    await alarmed.browser("click", page="police", selector="#act-confirm button.main")
    await alarmed.until("police", "#done")
    decided = await alarmed.state()
    assert (decided.state, decided.enforced) == (review_pb2.REVIEW_STATE_CONFIRMED, True)
    assert decided.decided_by == "spiffe://npa/desk/console/police-1"
    await alarmed.until_announced("RAISED", "ENDED")
    await alarmed.browser("open", page="police", url=alarmed.url)
    await alarmed.until("police", "#connection.ok")
    await alarmed.until("police", "#review-badge[hidden]")
    await alarmed.until("police", "#review-alarm[hidden]")


async def test_an_answer_from_an_old_page_says_who_decided(alarmed: Alarmed) -> None:
    await alarmed.browser("click", page="probation", selector="#act-reject summary")
    await alarmed.browser("fill", page="probation", selector="#act-reject input[name=reason]", value="another person")
    await alarmed.browser("click", page="probation", selector="#act-reject button.main")
    await alarmed.until("probation", "#refusal")
    assert "Somebody has decided meanwhile" in await alarmed.text("probation", "#refusal")
    assert "spiffe://npa/desk/console/police-1" in await alarmed.text("probation", "#history")
    assert (await alarmed.state()).state == review_pb2.REVIEW_STATE_CONFIRMED
    await alarmed.require_accessible("probation")
    faults = [fault for fault in (await alarmed.browser("seen"))["faults"] if not re.search(r"40[349] ", fault)]
    assert faults == []  # but for the refused pages
