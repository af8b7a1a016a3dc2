"""Authorised encounters: parsing, rejections with their field, and their part in cases and digests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from services.common import times
from services.common.errors import InvalidField
from services.registry.cases import translate as snapshots
from services.registry.domain import lifecycle
from services.registry.domain.cases import build_case
from services.registry.domain.lifecycle import OrderStage
from services.registry.domain.reconciliation import ENCOUNTER_NUMBERS
from services.registry.domain.records import EncounterReason
from services.registry.records import kinds, places
from services.registry.records.places import AREAS
from services.registry.records.translate import ENCOUNTER_PLACES_MAX, ENCOUNTERS_MAX, parse_order, parse_wearer
from tandem.common.v1 import encounter_pb2
from tandem.common.v1.encounter_pb2 import Encounter as Message
from tandem.registry.v1 import registry_pb2
from tests.support.registry import listing, records

FROM_S = 1_700_000_000


def order_with(*encounters: Message) -> registry_pb2.Order:
    order = records.order()
    order.encounters.extend(encounters)
    return order


def test_an_encounter_is_parsed_completely_and_is_unchanged_in_the_case() -> None:
    sent = records.encounter()
    sent.places.append(records.circle("court"))
    sent.daily_from_s, sent.daily_until_s = 9 * 3600, 86_400
    order = parse_order(order_with(sent, records.encounter("e-2")))
    first, second = order.encounters
    assert (first.encounter_id, first.reason) == ("e-1", EncounterReason.COURT_DATE)
    assert (first.from_ms, first.until_ms) == (FROM_S * 1000, FROM_S * 1000 + 3_600_000)
    assert (first.daily_from_s, first.daily_until_s) == (32_400, 86_400)
    assert [place.place_id for place in first.places] == ["court"]
    assert (second.places, second.daily_until_s) == ((), 0)

    case = build_case(order, parse_wearer(records.wearer()), [], devices=[])
    assert list(snapshots.case_to_proto(case, 1).encounters) == [sent, records.encounter("e-2")]


def test_an_encounter_may_fill_the_whole_validity() -> None:
    sent = order_with(records.encounter())
    getattr(sent.encounters[0], "from").CopyFrom(sent.valid_from)
    sent.encounters[0].until.CopyFrom(sent.valid_until)
    (parsed,) = parse_order(sent).encounters
    assert parsed.from_ms == times.from_timestamp(sent.valid_from)


def _same_id(order: registry_pb2.Order) -> None:
    order.encounters.append(records.encounter())


def _too_many(order: registry_pb2.Order) -> None:
    order.encounters.extend(records.encounter(f"x-{n}") for n in range(ENCOUNTERS_MAX))


def _before_the_order(order: registry_pb2.Order) -> None:
    getattr(order.encounters[0], "from").seconds = order.valid_from.seconds - 1


def _after_the_order(order: registry_pb2.Order) -> None:
    order.encounters[0].until.seconds = order.valid_until.seconds + 1


def _of_no_length(order: registry_pb2.Order) -> None:
    order.encounters[0].until.CopyFrom(getattr(order.encounters[0], "from"))


def _too_many_places(order: registry_pb2.Order) -> None:
    max_places = ENCOUNTER_PLACES_MAX
    order.encounters[0].places.extend(records.circle(f"c-{n}") for n in range(max_places + 1))


def _place_twice(order: registry_pb2.Order) -> None:
    order.encounters[0].places.extend([records.circle(), records.circle()])


def _bow_tie(order: registry_pb2.Order) -> None:
    order.encounters[0].places.append(records.polygon((37, 127), (38, 128), (38, 127), (37, 128)))


def _too_many_vertices(order: registry_pb2.Order) -> None:
    place = records.polygon(*[(37.0, 127.0)] * 200)
    for n in range(26):
        order.encounters.append(records.encounter(f"x-{n}"))
        order.encounters[-1].places.extend([place, place])


def _daily(from_s: int, until_s: int) -> Callable[[registry_pb2.Order], None]:
    def spoil(order: registry_pb2.Order) -> None:
        order.encounters[0].daily_from_s, order.encounters[0].daily_until_s = from_s, until_s

    return spoil


BAD: dict[str, tuple[Callable[[registry_pb2.Order], None], str]] = {
    "no id": (lambda order: order.encounters[0].ClearField("encounter_id"), "encounters[0].encounter_id"),
    "an invalid id": (
        lambda order: setattr(order.encounters[0], "encounter_id", "a b"),
        "encounters[0].encounter_id",
    ),
    "one id twice": (_same_id, "encounters[1].encounter_id"),
    "no reason": (lambda order: order.encounters[0].ClearField("reason"), "encounters[0].reason"),
    "an unknown reason": (lambda order: setattr(order.encounters[0], "reason", 9), "encounters[0].reason"),
    "no start": (lambda order: order.encounters[0].ClearField("from"), "encounters[0].from"),
    "no end": (lambda order: order.encounters[0].ClearField("until"), "encounters[0].until"),
    "an end at the start": (_of_no_length, "encounters[0].until"),
    "before the order": (_before_the_order, "encounters[0].from"),
    "after the order": (_after_the_order, "encounters[0].until"),
    "too many": (_too_many, "encounters"),
    "too many places": (_too_many_places, "encounters[0].places"),
    "a place twice": (_place_twice, "encounters[0].places[1].place_id"),
    "a polygon that crosses itself": (_bow_tie, "encounters[0].places[0].polygon"),
    "too many vertices": (_too_many_vertices, "encounters"),
    "a window that begins before midnight": (_daily(-1, 5), "encounters[0].daily_from_s"),
    "a window that ends after midnight": (_daily(5, 86_401), "encounters[0].daily_until_s"),
    "a window that ends before it begins": (_daily(7, 5), "encounters[0].daily_until_s"),
    "a window without an end": (_daily(7, 0), "encounters[0].daily_until_s"),
    "a window of nothing": (_daily(7, 7), "encounters[0].daily_until_s"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_encounter_is_rejected_at_its_field(name: str) -> None:
    spoil, field = BAD[name]
    order = order_with(records.encounter())
    parse_order(order)
    spoil(order)
    with pytest.raises(InvalidField) as refusal:
        parse_order(order)
    assert refusal.value.field == field


def test_the_places_of_an_encounter_must_lie_in_the_service_area() -> None:
    sent = records.encounter()
    sent.places.append(records.circle("court"))
    places.check_area(parse_order(order_with(sent)), AREAS["korea"])
    sent.places[0].circle.lat_deg = 39.98
    with pytest.raises(InvalidField) as refusal:
        places.check_area(parse_order(order_with(sent)), AREAS["korea"])
    assert refusal.value.field == "encounters[0].places[0].circle"


def test_the_digest_of_an_order_covers_its_encounters() -> None:
    sent = records.encounter()
    sent.places.append(records.circle("court"))
    sent.daily_from_s, sent.daily_until_s = 1, 2
    message = order_with(records.encounter("e-0"), sent)
    found = kinds.list_entry(parse_order(message)).digest
    assert found == listing.listed(message).digest
    assert found != kinds.list_entry(parse_order(order_with(records.encounter("e-0")))).digest


def test_encounter_reasons_have_the_numbers_of_the_proto() -> None:
    for reason in EncounterReason:
        assert ENCOUNTER_NUMBERS[reason] == encounter_pb2.EncounterReason.Value(reason.name)


def test_an_order_that_gets_an_encounter_is_amended() -> None:
    before = parse_order(records.order())
    after = replace(parse_order(order_with(records.encounter())), source_version=2)
    assert lifecycle.stage_of(before, after) is OrderStage.AMENDED
