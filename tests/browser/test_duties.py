"""The duties of a shift by a script, as an officer would do them: how many clicks, keys and seconds each needs. No duty needs an id.

It prints a table.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from services.client import demo
from services.client import mesh as meshes
from services.client.actors import VENDOR, Alerts
from services.common import times
from services.common.times import KOREA
from tandem.ingest.v1 import ingest_pb2
from tests.browser.driver import Browser, browser
from tests.support.common.mesh import RunningMesh
from tests.support.registry.undecided import put_undecided_records

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
DESK = "police"


@dataclass
class Hands:
    """An officer's mouse and keyboard, which count."""

    url: str
    browser: Browser
    clicks: int = 0
    keys: int = 0
    typed: list[str] = field(default_factory=list)
    """Texts typed so far in the duty."""

    async def click(self, selector: str) -> None:
        """Clicks an element."""
        self.clicks += 1
        await self.browser("click", page=DESK, selector=selector)

    async def press(self, key: str) -> None:
        """Presses a key."""
        self.keys += 1
        await self.browser("press", page=DESK, key=key)

    async def type(self, selector: str, text: str) -> None:
        """Types a text into a field."""
        self.keys += len(text)
        self.typed.append(text)
        await self.browser("fill", page=DESK, selector=selector, value=text)

    async def choose(self, selector: str, value: str) -> None:
        """Chooses from a list, which takes two clicks."""
        self.clicks += 2
        await self.browser("select", page=DESK, selector=selector, value=value)

    async def see(self, selector: str) -> None:
        """Returns when an element is there."""
        await self.browser("wait", page=DESK, selector=selector)


async def find_the_most_urgent(hands: Hands) -> None:
    """The first row of the live page is the demand to respond, and its card is open."""
    await hands.see("#incidents li:first-child .demand-RESPOND")
    await hands.see("#card:not([hidden]) .demand-RESPOND")


async def who_is_it(hands: Hands) -> None:
    """Names and, where the records have them, telephones, by one row of the ledger."""
    await hands.press("w")
    await hands.see("#ask-names[open]")
    await hands.click("#ask-names button.main")
    await hands.see("#card-who .named strong")


async def where_is_she(hands: Hands) -> None:
    """The card says where the wearer is and how far from her, the map shows both."""
    await hands.see("#card-where p:nth-child(2)")
    await hands.press("f")


async def accept_both(hands: Hands) -> None:
    """All destinations of the own leg are accepted with the keyboard."""
    await hands.press("a")
    await hands.see("#card-own:has(.state-ACKNOWLEDGED):not(:has([data-act^=acknowledge]))")


async def note(hands: Hands, kind: str, text: str) -> None:
    """Writes a note of a kind, and waits until it is in the list."""
    await hands.press("n")
    if kind != "NOTE":
        await hands.choose("#note-form select[name=kind]", kind)
    await hands.type("#note-form input[name=text]", text)
    before = int(await hands.browser("eval", page=DESK, expression="document.querySelectorAll('#notes li').length"))
    await hands.press("Enter")
    await hands.see(f"#notes li:nth-child({before + 1})")


async def write_to_the_other_leg(hands: Hands) -> None:
    """A note that both desks read."""
    await note(hands, "NOTE", "남문에서 만납시다")


async def note_a_call(hands: Hands) -> None:
    """Whom the desk called, and that they spoke."""
    await note(hands, "CALLED_PROTECTED_PERSON", "집에 있음")


async def hand_over(hands: Hands) -> None:
    """The leaving shift writes what the next one must know."""
    await hands.click("nav a[href='/handover']")
    await hands.type("textarea[name=notes]", "한 건 진행 중")
    await hands.click("#write")
    await hands.see("section[aria-labelledby=h-waiting] article")


async def which_device_is_about_to_die(hands: Hands) -> None:
    """Devices in trouble, the one that dies first at the top, with its charge."""
    await hands.click("nav a[href='/watched-devices']")
    await hands.see("[data-device]")


async def decide_a_review(hands: Hands) -> None:
    """From the live page to a decided review."""
    await hands.click("nav a[href='/reviews']")
    await hands.click("button.open")
    await hands.see("#sides")
    await hands.click("#act-confirm summary")
    await hands.type("#act-confirm input[name=reason]", "전화로 확인")
    await hands.click("#act-confirm button.main")
    await hands.see("#review-state[data-state=CONFIRMED], .done")


async def find_yesterdays_incident(hands: Hands) -> None:
    """By the time alone, from the night before until now."""
    now = datetime.now(UTC).astimezone(KOREA)
    await hands.click("nav a[href='/search']")
    await hands.type("input[name=from]", (now - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M"))
    await hands.type("input[name=until]", (now + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M"))
    await hands.click("form[role=search] button.main")
    await hands.click("section[aria-labelledby=h-found] tbody tr:first-child a")
    await hands.see("#h-timeline")


Act = Callable[[Hands], Awaitable[None]]
DUTIES: tuple[tuple[str, Act], ...] = (
    ("find the most urgent incident", find_the_most_urgent),
    ("who is it", who_is_it),
    ("where is she", where_is_she),
    ("accept both destinations", accept_both),
    ("tell the other leg", write_to_the_other_leg),
    ("note a call", note_a_call),
    ("hand over the shift", hand_over),
    ("decide a match review", decide_a_review),
    ("find yesterday's incident", find_yesterdays_incident),
    ("which device is about to die", which_device_is_about_to_die),
)
"""Duties in their order."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ids_and_hands(mesh: RunningMesh) -> AsyncIterator[tuple[list[str], Hands]]:
    """The ids that nobody should have to type, and an officer of the 112 room before a demand to respond."""
    plan = demo.new_plan()
    async with (
        browser() as seen,
        meshes.connect(mesh.now) as clients,
        demo.stage(clients, plan) as stage,
        Alerts(clients, (plan.id("order"),)) as alerts,
    ):
        await put_undecided_records(clients)
        await seen.sign_in(DESK, mesh.now.console_url, DESK, "ko")
        for name, _, act in demo.STEPS:
            await act(stage)
            if name == "respond":
                break
        position = ingest_pb2.Position(
            device_id=plan.id("app"),
            report_id="low-battery",
            fix_time=times.to_timestamp(clients.clock.now_ms()),
            lat_deg=demo.HOME.lat_deg,
            lon_deg=demo.HOME.lon_deg,
            accuracy_m=10,
            battery_pct=12,
        )
        request = ingest_pb2.ReportBatchRequest(positions=[position])
        assert not (await clients.ingest.ReportBatch(request, metadata=clients.identity(VENDOR))).refusals
        incident_id = next(seen.alert.incident_id for seen in alerts.seen if seen.alert.incident_id)
        ids = [incident_id, *(plan.id(what) for what in ("order", "tag", "app")), stage.wearer_id, stage.person_id]
        yield ids, Hands(mesh.now.console_url, seen)


async def test_the_duties_of_a_shift_need_no_id(ids_and_hands: tuple[list[str], Hands]) -> None:
    ids, hands = ids_and_hands
    print(f"\n{'duty':<32} {'clicks':>6} {'keys':>5} {'seconds':>8}")
    for duty, act in DUTIES:
        hands.clicks = 0
        hands.keys = 0
        hands.typed = []
        begun_s = time.monotonic()
        await act(hands)
        print(f"{duty:<32} {hands.clicks:>6} {hands.keys:>5} {time.monotonic() - begun_s:>8.1f}")
        assert not [id_ for id_ in ids if any(id_ in text for text in hands.typed)], duty
