"""The plan of a command: order of its messages, versions of cases and routes, and effects that see the ones before them."""

from __future__ import annotations

from services.registry.cases.effects import CaseMessage, Effects
from services.registry.cases.surroundings import Surroundings
from services.registry.domain.cases import MatchPair, PlanTerms, StoredCase, StoredRoute, decide_pair
from services.registry.domain.device_tokens import DeviceToken
from services.registry.domain.reviews import Event
from services.registry.records import translate
from services.registry.records.store import owner_of
from services.registry.unit_of_work import OutboxMessage
from tests.support.registry import records

NOW_MS = 1_700_000_000_000
TERMS = PlanTerms(NOW_MS, 3, str.encode)
ORDER = translate.parse_order(records.order())
WEARER = translate.parse_wearer(records.wearer())
DEVICES = [translate.parse_device(records.device(f"app-{n}")) for n in range(2)]
TAG = translate.parse_tag(records.tag())
PAIR = MatchPair(ORDER, WEARER, None, None)
FOUND = Surroundings(devices={"p-1": DEVICES}, tags={"w-1": [TAG]})


def sent(effects: Effects) -> list[str]:
    """Device id or case version of each message, in order."""
    return [
        message.msg_id.split(":")[1] if isinstance(message, OutboxMessage) else f"case {message.version - NOW_MS}"
        for message in effects.messages
    ]


def test_the_routes_of_a_case_go_before_its_snapshot() -> None:
    effects = Effects(TERMS, FOUND, [PAIR])
    effects.settle(decide_pair(PAIR, TERMS))
    assert sent(effects) == ["app-0", "app-1", "case 0"]
    assert [event.event for event in effects.events] == [Event.MATCHED]
    assert effects.cases[PAIR.case_id].is_new
    assert [line.event for line in effects.logs] == ["order_matched"]


def test_a_case_that_is_refreshed_twice_gets_two_versions_and_its_unchanged_routes_are_sent_once() -> None:
    effects = Effects(TERMS, FOUND, [PAIR])
    effects.refresh(PAIR)
    effects.refresh(PAIR)
    assert sent(effects) == ["app-0", "app-1", "case 0", "case 1"]
    assert effects.cases[PAIR.case_id].case.version == NOW_MS + 1
    assert [event.event for event in effects.events] == [Event.MATCHED]


def test_a_withdrawn_case_no_longer_counts_for_the_routes_of_its_persons() -> None:
    case = StoredCase(
        sequence=1,
        case_id=PAIR.case_id,
        order_id="o-1",
        wearer_id="w-1",
        version=5,
        matched_at_ms=5,
        withdrawn_at_ms=None,
    )
    pair = MatchPair(ORDER, WEARER, None, case)
    effects = Effects(TERMS, FOUND, [pair])
    effects.send_route(DEVICES[0])
    enforced = effects.routes["app-0"]
    effects.set_case(pair, False)
    assert effects.routes["app-0"].route != enforced.route
    assert effects.routes["app-0"].version == enforced.version + 1
    assert isinstance(effects.messages[-1], CaseMessage)
    assert [event.event for event in effects.events] == [Event.WITHDRAWN]


def test_an_unchanged_route_is_sent_only_for_renewal() -> None:
    effects = Effects(TERMS, FOUND)
    effects.send_route(TAG)
    stored = StoredRoute(NOW_MS + 7, effects.routes["tag-1"].route)
    later = Effects(TERMS, Surroundings(routes={"tag-1": stored}))
    later.send_route(TAG)
    assert later.messages == []
    later.send_route(TAG, renew=True)
    assert later.routes["tag-1"].version == NOW_MS + 8


def test_a_device_whose_owner_has_ended_is_revoked_and_loses_its_tokens() -> None:
    found = Surroundings(ended=frozenset({owner_of(TAG)}), tokens={"tag-1": [DeviceToken(b"hash", None)]})
    effects = Effects(TERMS, found)
    assert effects.is_revoked(TAG)
    effects.send_route(TAG)
    assert effects.tokens == {"tag-1": []}
    assert [line.event for line in effects.logs] == ["device_tokens_revoked"]
