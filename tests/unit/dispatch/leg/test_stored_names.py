"""Stored names of events: a separate table holds the names that are stored and hashed, so that a class may be renamed."""

from __future__ import annotations

from typing import get_args

from services.dispatch.domain.events import Event, LegAbsent
from services.dispatch.leg import chain

STORED = {
    *("AlertFolded", "AlertWasMissing", "Notified", "Offered", "Reoffered", "NobodyAvailable", "Escalated"),
    *("LegAbsent", "LegReturned", "StepsLost", "Received", "Acknowledged", "Rejected", "Progressed", "Closed"),
    *("StoodDown", "Flagged", "Retargeted", "Raced", "SceneShared", "SpoofingSuspected", "TargetsShown"),
}


def test_each_event_has_one_stored_name() -> None:
    assert set(chain.STORED_NAMES) == set(get_args(Event))
    assert len(set(chain.STORED_NAMES.values())) == len(chain.STORED_NAMES)


def test_stored_names_equal_those_of_existing_chains() -> None:
    assert set(chain.STORED_NAMES.values()) == STORED


def test_the_hash_of_a_link_covers_the_stored_name() -> None:
    link = chain.write(chain.ChainHead(), "incident-1", LegAbsent(1_000, "assignment-1", "police"))
    assert link.kind == "LegAbsent"
    renamed = chain.ChainedEvent(link.id, link.incident_id, "LegAway", link.body, link.hash)
    assert chain.first_broken(chain.ChainHead(), [renamed]) == (chain.ChainHead(), 1)
