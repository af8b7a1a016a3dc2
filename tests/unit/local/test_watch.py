"""The watch pages for missing and late canaries, and not for canaries that come in time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from services.cli.commands.exercises import watch
from services.client.drill import ACCURACY_M, INSIDE_M, OUTSIDE_M, lead_ms
from services.common.failure import CommandFailed
from services.common.messaging import flow
from services.geofence.domain.demands import AlertKind
from services.local import canary
from services.local.canary import Canary, CanaryState, Page, PageKind, canaries_at_start, delivered, judge, progress_of
from services.local.watch import SLOTS, CommandPager, PageFailed, PageMessage, pagers
from tests.support.dispatch.receivers import OLD_SECRET, Receiver, configured, receiver_entry
from tests.support.geofence.stories import Story

T0_MS = 1_800_000_000_000


def sent(number: int, at_s: float, durable: bool = True) -> Canary:
    return Canary(number, number % 6, at_s, durable=durable)


def come(canary: Canary) -> None:
    """Completes a canary, except that it isn't stood down."""
    canary.durable = canary.decided = True
    canary.offered = set(flow.LEGS)
    canary.accepted = set(flow.LEGS)
    canary.notified = set(flow.AGENCY_LEGS)


def check(state: CanaryState, now_s: float, is_delivered: bool = True) -> Page | None:
    """The page that is due now, and its delivery if `is_delivered`."""
    now_ms = T0_MS + round(now_s * 1000)
    page = judge(state, now_s, now_ms)
    if page is not None and is_delivered:
        delivered(state, page, now_ms)
    return page


def kinds(watched: CanaryState, moments_s: range) -> list[tuple[int, PageKind]]:
    return [(now_s, page.kind) for now_s in moments_s if (page := check(watched, now_s))]


@pytest.mark.parametrize("slot", range(SLOTS))
def test_each_canary_is_decided_at_its_report_and_cleared_before_its_wearers_next_turn(slot: int) -> None:
    story = Story()
    entered = AlertKind.RING_ENTERED
    cleared = AlertKind.RING_CLEARED
    story.case()
    for at_s in (0.0, *(lead_ms() / 1000 + canary.INTERVAL_S * number for number in range(4 * SLOTS))):
        turn = round((at_s - lead_ms() / 1000) / canary.INTERVAL_S)
        is_inside = at_s > 0 and turn % SLOTS == slot
        before = [alert.kind for alert in story.of(entered, cleared) if alert.ring_mm == 100_000]
        story.at(at_s, "phone", 0, accuracy_m=ACCURACY_M)
        story.at(at_s, "tag", INSIDE_M if is_inside else OUTSIDE_M, accuracy_m=ACCURACY_M)
        if is_inside:
            now = [alert.kind for alert in story.of(entered, cleared) if alert.ring_mm == 100_000]
            assert now == [*before, entered], turn
            assert before[-1:] in ([], [cleared]), turn


def test_nobody_is_paged_while_each_canary_comes_and_is_stood_down() -> None:
    watched, pages = CanaryState(), []
    for number in range(30):
        newest = sent(number, 20.0 * number)
        watched.canaries.append(newest)
        come(newest)
        for before in watched.canaries:
            if newest.sent_s - before.sent_s >= 100:
                before.stood_down = set(flow.LEGS)
        pages += kinds(watched, range(20 * number, 20 * number + 20))
    assert not pages and len(watched.canaries) <= 6


def test_an_outage_is_paged_repeatedly_and_its_end_once() -> None:
    watched = CanaryState([sent(number, 20.0 * number, durable=False) for number in range(40)])
    assert kinds(watched, range(700)) == [
        (35, PageKind.MISSING),
        (335, PageKind.STILL_MISSING),
        (635, PageKind.STILL_MISSING),
    ]
    assert watched.outage is not None and watched.outage.since_ms == T0_MS
    back = sent(41, 700.0)
    come(back)
    watched.canaries.append(back)
    assert kinds(watched, range(700, 800)) == [(700, PageKind.BACK)]
    assert watched.outage is None


def test_an_undelivered_page_is_retried() -> None:
    watched = CanaryState([sent(1, 0.0, durable=False)])
    assert [check(watched, now_s, is_delivered=False) is not None for now_s in (34, 35, 36)] == [False, True, True]
    back = sent(2, 40.0)
    come(back)
    watched.canaries.append(back)
    pages = [check(watched, now_s, is_delivered) for now_s, is_delivered in ((41, False), (42, True), (43, True))]
    assert [page.kind for page in pages if page] == [PageKind.BACK, PageKind.BACK]


def test_the_next_canary_makes_up_for_a_report_that_never_reached_the_log() -> None:
    lost, following = sent(1, 0.0, durable=False), sent(2, 20.0)
    watched = CanaryState([lost, following])
    come(following)
    assert kinds(watched, range(21, 100)) == []


def test_a_report_in_the_log_must_lead_to_offers_even_if_later_canaries_come() -> None:
    lost, other = sent(1, 0.0), sent(2, 20.0)
    watched = CanaryState([lost, other])
    come(other)
    assert kinds(watched, range(21, 36)) == [(35, PageKind.MISSING)]
    assert watched.outage and watched.outage.seen == "ingest put it into the log; there is no alert"
    assert kinds(watched, range(36, 60)) == [(36, PageKind.BACK)]


def test_a_canary_that_is_not_stood_down_is_missing_until_a_later_one_is_over() -> None:
    stuck = sent(1, 0.0)
    watched = CanaryState([stuck])
    come(stuck)
    stuck.stood_down = {"probation", "warning"}
    assert kinds(watched, range(200)) == [(150, PageKind.MISSING)]
    assert watched.outage and watched.outage.seen == "all legs accepted it; not stood down: police"
    later = sent(2, 200.0)
    come(later)
    watched.canaries.append(later)
    assert kinds(watched, range(200, 300)) == []
    later.stood_down = set(flow.LEGS)
    assert kinds(watched, range(300, 302)) == [(300, PageKind.BACK)]


def test_a_canary_from_before_an_outage_causes_no_page_after_it() -> None:
    before = sent(1, 0.0)
    during = sent(2, 20.0, durable=False)
    after = sent(8, 140.0)
    watched = CanaryState([before, during, after])
    come(before)
    assert kinds(watched, range(20, 141)) == [(55, PageKind.MISSING)]
    come(after)
    assert kinds(watched, range(141, 280)) == [(141, PageKind.BACK)]


@pytest.mark.parametrize(("missing_s", "paged_s"), [(0.0, 1035), (20.0, 1015), (600.0, 1010)])
def test_a_canary_missing_at_a_restart_of_the_watch_is_still_missing(missing_s: float, paged_s: int) -> None:
    watched = CanaryState(canaries_at_start(missing_s, 1000.0))
    assert kinds(watched, range(1000, 1036)) == [(paged_s, PageKind.MISSING)]
    assert canaries_at_start(None, 1000.0) == []


def test_the_page_says_how_far_a_canary_came() -> None:
    canary = sent(1, 0.0, durable=False)
    assert progress_of(canary) == "nothing; ingest has not answered"
    canary.failed = "UNAVAILABLE: no route"
    assert progress_of(canary) == "nothing; UNAVAILABLE: no route"
    canary.durable = True
    assert progress_of(canary) == "ingest put it into the log; there is no alert"
    canary.decided = True
    canary.offered = {"probation", "warning"}
    canary.accepted = {"probation"}
    assert progress_of(canary) == "there is an alert; probation accepted it, police did nothing, warning offered it"
    canary.accepted, canary.notified = set(flow.LEGS), {"police"}
    assert progress_of(canary) == "all legs accepted it; not notified of the other agency's assignment: probation"


def test_an_outage_is_detected_within_a_minute() -> None:
    assert canary.INTERVAL_S + canary.LATE_AFTER_S < 60


MESSAGE = PageMessage("page-1", "MISSING", "Tandem: …", "outage-1", "2026-03-02T10:00:00.000Z", "nothing", ("ingest",))


async def test_a_program_receives_the_page_and_its_exit_code_confirms_it(tmp_path: Path) -> None:
    out = tmp_path / "page.json"
    code = f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read())"
    await CommandPager([sys.executable, "-c", code]).page(MESSAGE)
    assert json.loads(out.read_text())["not_answering"] == ["ingest"]
    for command in ([sys.executable, "-c", "raise SystemExit(3)"], [str(tmp_path / "nowhere")]):
        with pytest.raises(PageFailed):
            await CommandPager(command).page(MESSAGE)


async def test_a_webhook_receives_the_page_signed_after_the_standard(tmp_path: Path) -> None:
    receiver = Receiver()
    receiver.answers = [204, 503]
    (pager,) = pagers([], configured(tmp_path, receiver_entry(receiver, name="call")))
    async with receiver.serving():
        await pager.page(MESSAGE)
        with pytest.raises(PageFailed, match="503"):
            await pager.page(MESSAGE)
    with pytest.raises(PageFailed, match="Connect"):
        await pager.page(MESSAGE)
    headers, body = receiver.requests[0]
    assert Webhook(OLD_SECRET).verify(body, headers)["id"] == headers["webhook-id"] == MESSAGE.id


def test_an_unusable_file_of_webhooks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pagers.json"
    path.write_text('[{"name": "call", "url": "http://call.example", "secrets": []}]')
    with pytest.raises(CommandFailed, match="https"):
        pagers([], path)


def test_a_pager_is_tried_without_a_mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.json"
    program = tmp_path / "pager.py"
    nowhere = tmp_path / "nowhere"
    program.write_text(f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read())")
    watch(nowhere, f"{sys.executable} {program}", test_page=True)
    assert json.loads(out.read_text())["kind"] == "TEST"
    assert capsys.readouterr().out == f"{Path(sys.executable).name} accepted the page\n"
    with pytest.raises(CommandFailed, match="1 of 1 pagers refused the page"):
        watch(nowhere, "false", test_page=True)
    assert capsys.readouterr().out == "false refused the page: exit code 1\n"
    with pytest.raises(CommandFailed, match="no pager is configured: set TANDEM_PAGER_COMMAND"):
        watch(nowhere, test_page=True)
