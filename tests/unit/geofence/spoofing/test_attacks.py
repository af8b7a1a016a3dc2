"""Ways to talk a response away: none of them clears the ring that demands it within 30 minutes unless a desk has been notified."""

from __future__ import annotations

import pytest

from services.geofence.domain import codec
from tests.support.geofence.spoofing import copies, jumps
from tests.support.geofence.spoofing.scene import Attack, both_tags_come_near, fold, play

ATTACKS: dict[str, Attack] = {
    "jump: 20 km": Attack(jumps.far),
    "jump: 20 km, a report a minute": Attack(jumps.far, every_s=60),
    "jump: 20 km, from a person": Attack(jumps.far, target="person"),
    "jump: 1 km in 15 s": Attack(jumps.near),
    "jump: below the speed of a jump": Attack(jumps.below_the_speed_of_a_jump),
    "jump: steps at the speed of a train": Attack(jumps.steps_below_the_speed_of_a_train, every_s=5),
    "jump: steps of a receiver's error": Attack(jumps.steps_of_a_receivers_error, every_s=5),
    "jump: the speed of a train at once": Attack(jumps.train_speed_at_once, every_s=5),
    "jump: to the sea": Attack(jumps.to_the_sea),
    "jump: back and forth": Attack(jumps.back_and_forth),
    "jump: between two far places": Attack(jumps.between_two_far_places),
    "jump: then a plausible drive": Attack(jumps.a_plausible_way_far_from_here),
    "jump: after a gap": Attack(jumps.after_a_gap),
    "jump: after a long gap": Attack(jumps.after_a_long_gap),
    "jump: between gaps": Attack(jumps.after_short_gaps),
    "jump: by delayed reports": Attack(jumps.by_delayed_reports),
    "jump: with one report id": Attack(jumps.with_one_report_id),
    "jump: with the ids of true reports": Attack(jumps.with_ids_of_true_reports),
    "jump: with a rewritten past": Attack(jumps.rewritten_past),
    "freeze: outside": Attack(copies.frozen),
    "freeze: outside, a report a minute": Attack(copies.frozen, every_s=60),
    "freeze: far outside": Attack(copies.frozen_far),
    "freeze: then moved": Attack(copies.frozen_then_moved),
    "freeze: with jitter": Attack(copies.frozen_with_jitter),
    "freeze: two points in turn": Attack(copies.frozen_between_two),
    "copy: departure of yesterday": Attack(copies.own_departure, before=copies.left_yesterday),
    "copy: departure of an hour ago": Attack(copies.own_departure, before=copies.left_an_hour_ago),
    "copy: departure of an hour ago, a report a minute": Attack(
        copies.own_departure, before=copies.left_an_hour_ago, every_s=60
    ),
    "copy: departure of an hour ago, a report each 5 s": Attack(
        copies.own_departure, before=copies.left_an_hour_ago, every_s=5
    ),
    "copy: departure of an hour ago, from a person": Attack(
        copies.own_departure, before=copies.left_an_hour_ago, target="person"
    ),
    "copy: faster": Attack(copies.own_departure_faster, before=copies.left_an_hour_ago),
    "copy: every second position": Attack(copies.own_departure_in_part, before=copies.left_an_hour_ago),
    "copy: with made-up positions between": Attack(copies.own_departure_with_pauses, before=copies.left_an_hour_ago),
    "copy: with noise": Attack(copies.own_departure_with_noise, before=copies.left_an_hour_ago),
    "copy: the way here reversed": Attack(copies.own_way_reversed),
    "copy: positions of yesterday at home": Attack(copies.standing_yesterday, before=copies.left_yesterday),
    "accuracy: stated 1 m": Attack(jumps.stated_one_metre),
    "accuracy: stated 10 km": Attack(jumps.stated_ten_kilometres),
    "accuracy: grows and shrinks": Attack(jumps.growing_accuracy),
    "accuracy: grows to 1 km": Attack(jumps.growing_accuracy_near),
    "accuracy: alternates": Attack(jumps.alternating_accuracy),
    "accuracy: vague steps": Attack(jumps.vague_steps),
    "clock: ahead": Attack(jumps.clock_ahead),
    "clock: behind": Attack(jumps.clock_behind),
    "clock: steps": Attack(jumps.clock_stepping),
    "clock: beyond use": Attack(jumps.clock_beyond_use),
    "silence: a claim each 179 s": Attack(jumps.each_179_s),
    "silence: a claim each 240 s": Attack(jumps.each_240_s),
    "silence: single claims": Attack(jumps.single_claims_between_silences),
    "equipment: charger": Attack(jumps.on_the_charger),
    "equipment: low battery": Attack(jumps.with_a_low_battery),
    "equipment: restart": Attack(jumps.restarted),
    "tags: the second is far away": Attack(jumps.second_tag_far_away, before=both_tags_come_near, devices=("tag-2",)),
    "tags: both jump": Attack(jumps.both_tags_jump, before=both_tags_come_near, devices=("tag-2",)),
    "sides: her phone jumps": Attack(jumps.her_phone_jumps, target="person"),
    "sides: both jump": Attack(jumps.both_sides_jump, target="person"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_does_not_talk_a_response_away(name: str) -> None:
    result = play(name, ATTACKS[name])
    assert not result.is_talked_away, f"{name}: cleared after {result.cleared_s} s, and no desk was notified"


@pytest.mark.parametrize("name", ["copy: departure of yesterday", "freeze: then moved", "jump: back and forth"])
def test_restarts_change_nothing(name: str) -> None:
    whole, restarted = fold(name, ATTACKS[name]), fold(name, ATTACKS[name], restart_every=37)
    assert restarted.outputs == whole.outputs
    assert codec.encode(restarted.state) == codec.encode(whole.state)


def test_there_are_at_least_thirty_attacks_and_every_end_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    ends = {name: play(name, attack) for name, attack in ATTACKS.items()}
    cleared = [end for end in ends.values() if end.cleared_s is not None]
    with capsys.disabled():
        print()
        for name, end in ends.items():
            first = ", ".join(f"{kind} after {at_s:.0f} s" for kind, at_s in end.notices[:1]) or "no notice"
            print(f"{name}: {'held' if end.cleared_s is None else f'cleared after {end.cleared_s:.0f} s'}; {first}")
        print(f"{len(ends)} attacks: {len(ends) - len(cleared)} held, {len(cleared)} cleared after a notice")
    assert len(ends) >= 30
    assert not [name for name, end in ends.items() if end.is_talked_away]
