"""Stored names of events: a separate table holds the names that are stored and hashed, so that a class may be renamed."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dispatch.domain.events import EVENTS, AlertFolded, Event, LegAbsent
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain

STORED = {
    *("AlertFolded", "AlertWasMissing", "Notified", "Offered", "Reoffered", "NobodyAvailable", "Escalated"),
    *("LegAbsent", "LegReturned", "StepsLost", "Received", "Acknowledged", "Rejected", "Progressed", "Closed"),
    *("StoodDown", "Flagged", "Retargeted", "Raced", "SceneShared", "SpoofingSuspected", "TargetsShown"),
    *("ContactBegun", "ContactStepped", "NoteAdded", "TravelEstimated"),
    *("Reminded", "Assured", "DistressRaised", "DistressEnded"),
    *("UnitAsked", "NoUnitLeft", "UnitOfferEnded", "SentByRadio"),
    *("PanicCalled", "PanicWithdrawn"),
}


def test_each_event_has_one_stored_name() -> None:
    assert set(chain.STORED_NAMES) == set(get_args(Event))
    assert len(set(chain.STORED_NAMES.values())) == len(chain.STORED_NAMES)


def test_stored_names_equal_those_of_existing_chains() -> None:
    assert set(chain.STORED_NAMES.values()) == STORED


def test_the_hash_of_a_link_covers_the_stored_name() -> None:
    link = chain.write(chain.ChainHead(), "incident-1", LegAbsent(1_000, "assignment-1", Leg.POLICE))
    assert link.kind == "LegAbsent"
    renamed = chain.ChainedEvent(link.id, link.incident_id, "LegAway", link.body, link.hash)
    assert chain.first_broken(chain.ChainHead(), [renamed]) == (chain.ChainHead(), 1)


FINITE: dict[type[Event], dict[str, st.SearchStrategy[float]]] = {
    AlertFolded: {"ring_m": st.floats(allow_nan=False, allow_infinity=False)}
}


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_an_event_is_read_as_it_was_written(kind: type[Event], data: st.DataObject) -> None:
    builds: st.SearchStrategy[Event] = st.builds(kind, **FINITE.get(kind, {}))
    event = data.draw(builds)
    link = chain.write(chain.ChainHead(), "incident-1", event)
    assert chain.read(link.kind, link.body) == event
