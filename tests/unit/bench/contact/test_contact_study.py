"""The contact study on a few lives: the attacker, approaches, and that their seeds give the same lives."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from bench.contact import turning
from bench.contact.attacker import Attacker
from bench.contact.lives import DAYS, HOME_M, Month, month
from bench.contact.play import Played, perform


def test_the_lives_are_fixed_and_live_at_least_2_km_apart() -> None:
    lives = [month(seed) for seed in range(5)]
    assert all(HOME_M[0] <= abs(life.home) <= HOME_M[1] for life in lives)
    rounded = [
        [(round(s.at_s), round(s.point.real), round(s.point.imag)) for s in (*life.wearer[::50], *life.person[::50])]
        for life in lives
    ]
    assert hashlib.sha256(repr(rounded).encode()).hexdigest()[:16] == "c7d2f4561812c2b2"


def days(life: Month, count: int) -> Month:
    """The first days of a month."""
    share = len(life.wearer) * count // DAYS
    return replace(life, wearer=life.wearer[:share], person=life.person[:share])


def test_by_the_rule_the_attacker_learns_nearly_nothing_and_by_the_naive_rule_her_home() -> None:
    life = days(month(14), 12)
    played: Played = perform(life)
    attacker = Attacker(life)
    without_m = attacker.error_without_m()
    naive_m = attacker.error_m(played.notified_s, attacker.naive())
    rule_m = attacker.error_m(played.contacts_s, attacker.kept())
    assert rule_m >= 0.8 * without_m and rule_m >= 500
    assert naive_m < 0.5 * without_m
    assert played.contacts_s and len(played.notified_s) > len(played.caused_s)


def test_contacts_of_the_naive_rule_are_a_better_source_than_the_rules_own_for_the_same_attacker() -> None:
    """The attacker isn't blind: contacts that were all caused show him her home, whichever rule he believes."""
    life = days(month(14), 12)
    attacker = Attacker(life)
    entering = [at_s for at_s in perform(life).notified_s]
    near = [attacker.share_near(entering, rule, within_m=1_000) for rule in (attacker.naive(), attacker.kept())]
    assert min(near) > attacker.share_near((), attacker.kept(), within_m=1_000)


def test_turning_back_spares_dispatches_and_the_response_falls_due_as_ever() -> None:
    approaches = [turning.approach(seed) for seed in range(12)]
    assert all(approach.same_instants for approach in approaches)
    assert all(approach.ignored.messages_ms for approach in approaches), "each one comes within the ring of NOTIFY"
    ignored = sum(approach.ignored.dispatches for approach in approaches)
    obeyed = sum(approach.obeyed.dispatches for approach in approaches)
    assert obeyed < ignored / 2
    assert not any(approach.ignored.is_breach and not approach.ignored.responds_ms for approach in approaches)
