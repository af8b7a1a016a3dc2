"""The operators' list of devices: what is a problem, which is the worst, and that every word has a text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from services.console.domain import devices as reporting
from services.console.domain.devices import AskCard, AskedDevice, DeviceCard, MeasuredTag, Problem
from services.console.pages import devices as translate
from services.console.pages.assets import FOLDER
from services.console.pages.texts import TEXTS
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.console.devices import asks, listed, tag

ASK = AskCard("geofence", 30, 1_000, 2_000, refused=False)
FAR = replace(ASK, interval_s=170)
TAG = MeasuredTag("d", kept_s=30, slow=False, stated_m=8.0, observed_m=9.0, contradicted=False, last_fix_ms=None)


def disobeying(device_id: str, interval_s: int) -> DeviceCard:
    asked = AskedDevice(device_id, asks=(replace(ASK, interval_s=interval_s),), obeys="NO")
    return DeviceCard(device_id, asked, None)


@pytest.mark.parametrize(
    ("asked", "measured", "problems"),
    [
        (AskedDevice("d"), None, ()),
        (AskedDevice("d", obeys="NOT_YET", delivery="WAITING"), TAG, ()),
        (AskedDevice("d", obeys="NO"), TAG, (Problem.DISOBEYS,)),
        (AskedDevice("d", obeys="NOT_YET", delivery="REFUSED"), None, (Problem.DISOBEYS,)),
        (AskedDevice("d"), replace(TAG, slow=True), (Problem.SLOW,)),
        (AskedDevice("d", slow=True), None, (Problem.SLOW,)),
        (AskedDevice("d", obeys="NO"), replace(TAG, slow=True, contradicted=True), tuple(Problem)),
        # Far from every ring the decision asks for few reports, and a tag that does so has no problem.
        (AskedDevice("d", asks=(FAR,), obeys="YES", slow=True), replace(TAG, kept_s=217, slow=True), ()),
        (AskedDevice("d", asks=(FAR,), obeys="NOT_YET"), replace(TAG, kept_s=218, slow=True), (Problem.SLOW,)),
    ],
)
def test_the_problems_of_a_device_are_what_either_service_says(
    asked: AskedDevice, measured: MeasuredTag | None, problems: tuple[Problem, ...]
) -> None:
    assert DeviceCard("d", asked, measured).problems == problems


def test_the_worst_device_is_the_one_that_is_asked_for_the_shortest_interval_and_does_not_obey() -> None:
    vague = DeviceCard("vague", AskedDevice("vague"), replace(TAG, observed_m=30.0, contradicted=True))
    vaguer = DeviceCard("vaguer", AskedDevice("vaguer"), replace(TAG, observed_m=80.0, contradicted=True))
    slow = DeviceCard("slow", AskedDevice("slow"), replace(TAG, kept_s=200, slow=True))
    slower = DeviceCard("slower", AskedDevice("slower"), replace(TAG, kept_s=900, slow=True))
    fine = DeviceCard("fine", AskedDevice("fine", obeys="YES"), TAG)
    cards = [slow, fine, vague, disobeying("far", 150), slower, vaguer, disobeying("near", 15)]
    order = [card.device_id for card in reporting.conspicuous(cards)]
    assert order == ["near", "far", "vaguer", "vague", "slower", "slow"]
    assert [card.device_id for card in reporting.conspicuous(cards, "slow")] == ["slower", "slow"]
    assert [card.device_id for card in reporting.conspicuous(cards, text="VAG")] == ["vaguer", "vague"]
    assert reporting.counts(cards) == {Problem.DISOBEYS: 2, Problem.ACCURACY: 2, Problem.SLOW: 2}


def test_a_device_that_several_processes_list_is_the_one_with_the_newest_fix() -> None:
    stale, right = AskedDevice("d", obeys="NOT_YET", last_fix_ms=5), AskedDevice("d", obeys="NO", last_fix_ms=9)
    for devices in ([stale, right], [right, stale]):
        (card,) = reporting.reporting_devices(devices, [])
        assert card.asked == right
    (tag_only,) = reporting.reporting_devices([], [replace(TAG, last_fix_ms=7)])
    assert (tag_only.asked, tag_only.last_fix_ms, tag_only.kept_s, tag_only.ask) == (AskedDevice("d"), 7, 30, None)


def test_the_ask_in_effect_is_the_smallest_that_was_not_refused() -> None:
    refused = replace(ASK, interval_s=15, refused=True)
    assert DeviceCard("d", AskedDevice("d", asks=(refused, ASK)), None).ask == ASK
    assert DeviceCard("d", AskedDevice("d", asks=(refused,)), None).ask == refused


def test_lists_are_translated_with_all_that_is_shown() -> None:
    asked = translate._asked_device(
        listed(
            "d",
            4,
            asks=asks(("geofence", 30), ("spiffe://tandem/service/dispatch-police", 60), ("spiffe://moj/desk/lee", 90)),
            delivery=command_pb2.COMMAND_STATE_REFUSED,
            refused_because="no",
            observed_interval_s=186,
            slow=True,
            locates_sent=4,
            locates_answered=3,
        )
    )
    assert [(ask.interval_s, ask.asker) for ask in asked.asks] == [(30, "decision"), (60, "pursuit"), (90, "desk")]
    assert (asked.delivery, asked.refused_because, asked.obeys, asked.observed_s) == ("REFUSED", "no", "NO", 186)
    assert (asked.slow, asked.locates_sent, asked.locates_answered) == (True, 4, 3)
    measured = translate._measured_tag(tag("d", 186, 5.0, None))
    assert (measured.kept_s, measured.slow, measured.observed_m, measured.contradicted) == (186, True, None, False)
    assert translate._measured_tag(tag("d", 30, 5.0, 11.0)).contradicted


def test_every_state_and_every_word_of_the_pages_has_a_text_in_both_languages() -> None:
    states = {name.removeprefix("COMMAND_STATE_") for name in command_pb2.CommandState.DESCRIPTOR.values_by_name} - {
        "UNSPECIFIED"
    }
    obeys = {name.removeprefix("OBEDIENCE_") for name in ingest_pb2.Obedience.DESCRIPTOR.values_by_name} - {
        "UNSPECIFIED"
    }
    kinds = {field.name for field in command_pb2.Instruction.DESCRIPTOR.oneofs_by_name["kind"].fields}
    askers = {
        reporting.asker_of(by)
        for by in ("geofence", "spiffe://npa/desk/a", "spiffe://tandem/service/dispatch-police", "ingest")
    }
    assert len(askers) == 4
    needed = {f"delivery_{state}" for state in states} | {f"obeys_{state}" for state in obeys}
    needed |= {f"command_{kind}" for kind in kinds} | {f"asker_{asker}" for asker in askers}
    needed |= {f"{prefix}_{problem}" for problem in Problem for prefix in ("problem", "why")}
    needed |= {"away_ingest", "away_geofence"}
    for name in ("reporting.html", "reporting_device.html", "reporting_parts.html"):
        needed |= set(re.findall(r"\bt\('(\w+)'\)", (FOLDER / "templates" / name).read_text("utf-8")))
    assert needed <= TEXTS.keys(), needed - TEXTS.keys()
    for key in needed:
        korean, english = TEXTS[key]
        assert korean and english and korean.isascii() is False and english.isascii(), key
