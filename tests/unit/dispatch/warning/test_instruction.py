"""The one present instruction: which threat decides it, when it is replaced, how long it lasts, and how often it is repeated."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dispatch.domain.enums import Advice, Demand
from services.dispatch.warning.domain import (
    ALL_CLEAR_MS,
    ALL_CLEAR_READ_MS,
    MAX_REPEAT_MS,
    READ_MS,
    Advised,
    CalledSilently,
    Cleared,
    DeskClosed,
    DistanceChanged,
    DueInstruction,
    IncidentThreats,
    InstructedAct,
    Instruction,
    Issued,
    Last,
    Level,
    MessageKind,
    Occurrence,
    ReceiptKind,
    Threatened,
    ThreatKind,
    Unchanged,
    WarnedIncident,
    choose_shown,
    evolve,
    instruct,
    plan,
    repeat_after_ms,
)
from services.dispatch.warning.translate import (
    instruction_from_json,
    instruction_to_json,
    threats_from_json,
    threats_to_json,
)

WARN = Demand.WARN
NOTIFY = Demand.NOTIFY
RESPOND = Demand.RESPOND
RINGS = {2000.0: WARN, 1000.0: NOTIFY, 100.0: RESPOND}
HOME = "order-1/home"
HOUR_MS = 3_600_000


_STAYING = frozenset(
    (InstructedAct.LOCK_IN, InstructedAct.STAY_INSIDE, InstructedAct.KEEP_AWAY, InstructedAct.GO_INDOORS)
)


def contradict(first: InstructedAct, second: InstructedAct) -> bool:
    """Whether a person can't do both: one says to leave, and the other one to be behind a door."""
    return (first is InstructedAct.LEAVE and second in _STAYING) or (
        second is InstructedAct.LEAVE and first in _STAYING
    )


class Person:
    """A protected person who is instructed what `plan` says, at the moment at which it is due."""

    def __init__(self) -> None:
        self.now_ms, self.sequence = 1_000_000, 0
        self.threats: dict[str, IncidentThreats] = {}
        self.advice: dict[str, dict[str, Advised]] = {}
        self.drills: set[str] = set()
        self.issued: Issued | None = None
        self.waiting: Issued | None = None
        self.instructed: list[Issued] = []
        """All that she was instructed, in order."""

    def _evolve(self, occurrence: Occurrence, incident: str) -> None:
        state = evolve(self.threats.get(incident, IncidentThreats()), occurrence)
        assert evolve(state, occurrence) == state, "a repetition changes nothing"
        self.threats[incident] = state
        self._plan()

    def _plan(self) -> None:
        planned = plan(self.issued, self.waiting, self.find_present(), now_ms=self.now_ms)
        if planned is Unchanged.AS_ISSUED:
            self.waiting = None
        elif isinstance(planned, DueInstruction):
            self.waiting = Issued(planned.instruction, planned.due_ms)
        self.passes(0)

    def passes(self, pause_ms: int) -> None:
        """Lets time pass, in which what waits becomes due."""
        until_ms = self.now_ms + pause_ms
        if self.waiting is not None and self.waiting.at_ms <= until_ms:
            self.issued = Issued(self.waiting.instruction, max(self.now_ms, self.waiting.at_ms))
            self.instructed.append(self.issued)
            self.waiting = None
        self.now_ms = until_ms

    def present(self) -> Instruction:
        """The instruction that follows from her situation. There has to be one."""
        found = self.find_present()
        assert found is not None
        return found

    def figure(self) -> tuple[str, str]:
        """The alerts with the newest distance and the one before."""
        figure = self.present().figure
        assert figure is not None
        return figure.alert_id, figure.before_alert_id

    def is_calm(self) -> bool:
        """Whether no instruction follows from her situation."""
        return self.find_present() is None

    def find_present(self) -> Instruction | None:
        """The instruction that follows from her situation; None if there is none."""
        incidents = [
            WarnedIncident(name, state, list(self.advice.get(name, {}).values()), name in self.drills)
            for name, state in self.threats.items()
            if state.is_open
        ]
        present = instruct(incidents)
        assert present is None or instruction_from_json(instruction_to_json(present)) == present
        for state in self.threats.values():
            assert threats_from_json(threats_to_json(state)) == state
        return present

    def act(self) -> InstructedAct | None:
        """What she was instructed last to do; None after the all-clear, or if she was instructed nothing."""
        return self.issued.instruction.act if self.issued and self.issued.instruction else None

    def _place(self, sequence: int | None) -> tuple[int, int]:
        self.sequence += 1
        return sequence or self.sequence, 0

    def raised(self, kind: ThreatKind, demand: Demand, key: str, sequence: int | None, **more: Any) -> Threatened:
        place = self._place(sequence)
        values: dict[str, Any] = {"order_id": "order-1"} | more
        return Threatened(f"a{place[0]}", place, self.now_ms, key, kind, demand, **values)

    def enters(self, ring_m: float, place_id: str = "", incident: str = "i1", sequence: int | None = None) -> None:
        key = f"{incident} {place_id} {ring_m}"
        ring = self.raised(ThreatKind.RING, RINGS[ring_m], key, sequence, ring_m=ring_m, place_id=place_id)
        self._evolve(ring, incident)

    def sees(self, kind: ThreatKind, demand: Demand = RESPOND, incident: str = "i1", **more: Any) -> None:
        self._evolve(self.raised(kind, demand, f"{incident} {kind.value}", None, **more), incident)

    def hears_distance(self, ring_m: float, incident: str = "i1", sequence: int | None = None) -> None:
        ring = self.raised(ThreatKind.RING, WARN, f"{incident}  {ring_m}", sequence, ring_m=ring_m)
        self._evolve(DistanceChanged(ring), incident)

    def clears(self, key: str, incident: str = "i1", sequence: int | None = None, *, ends: bool = False) -> None:
        place = self._place(sequence)
        self._evolve(Cleared(f"a{place[0]}", place, f"{incident} {key}", ends_incident=ends), incident)

    def leaves(self, ring_m: float, incident: str = "i1", sequence: int | None = None, *, ends: bool = False) -> None:
        self.clears(f" {ring_m}", incident, sequence, ends=ends)

    def is_advised(self, advice: Advice, place_id: str = "", incident: str = "i1", place: int | None = None) -> None:
        given = Advised(advice, place_id, (place or self.sequence, 0), f"advice-{self.now_ms}", self.now_ms)
        self.advice.setdefault(incident, {})[place_id] = given
        self._plan()

    def closes(self, place_id: str = "", incident: str = "i1", *, found_nobody: bool = False) -> None:
        self._evolve(DeskClosed(place_id, self.now_ms + 2_000, found_nobody), incident)


# ── which threat decides ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_gravest_and_nearest_decides_and_the_next_takes_its_place() -> None:
    her = Person()
    her.enters(2000.0)
    assert her.act() is InstructedAct.KEEP_PHONE
    her.enters(1000.0)
    assert her.act() is InstructedAct.GO_INDOORS
    her.enters(100.0, HOME)
    assert her.act() is InstructedAct.KEEP_AWAY
    her.enters(100.0)
    assert her.act() is InstructedAct.LOCK_IN
    for key, act in ((" 100.0", InstructedAct.KEEP_AWAY), (f"{HOME} 100.0", InstructedAct.GO_INDOORS)):
        her.clears(key)
        her.passes(READ_MS)
        assert her.act() is act
    assert [issued.instruction and issued.instruction.ring_m for issued in her.instructed] == [
        2000,
        1000,
        100,
        100,
        100,
        1000,
    ]


@pytest.mark.parametrize("kind", [ThreatKind.UNSEEN, ThreatKind.TAMPERED, ThreatKind.COMING])
def test_who_may_be_near_goes_before_a_farther_ring_and_after_one_that_is_reached(kind: ThreatKind) -> None:
    her = Person()
    her.enters(1000.0)
    her.sees(kind)
    assert (her.present().kind, her.act()) == (kind, InstructedAct.GO_INDOORS)
    her.enters(100.0)
    assert her.present().kind is ThreatKind.RING and her.act() is InstructedAct.LOCK_IN


def test_a_ring_says_that_the_wearer_is_unseen_since_and_a_place_is_then_no_reason_to_stay_away_alone() -> None:
    her = Person()
    her.enters(100.0, HOME)
    her.sees(ThreatKind.UNSEEN)
    her.passes(READ_MS)
    assert her.act() is InstructedAct.GO_INDOORS
    her.clears("UNSEEN")
    her.passes(READ_MS)
    assert her.act() is InstructedAct.KEEP_AWAY and not her.present().is_unseen
    her.enters(100.0)
    her.sees(ThreatKind.UNSEEN)
    assert her.act() is InstructedAct.LOCK_IN and her.present().is_unseen


def test_advice_holds_until_it_is_replaced_or_the_race_is_over_and_reach_at_herself_goes_before_it() -> None:
    her = Person()
    her.enters(1000.0)
    her.is_advised(Advice.LEAVE)
    assert her.act() is InstructedAct.LEAVE
    her.passes(HOUR_MS)
    assert her.act() is InstructedAct.LEAVE and her.present().ring_m == 1000.0
    her.is_advised(Advice.STAY_INSIDE)
    assert her.act() is InstructedAct.STAY_INSIDE, "there is no time to leave: at once"
    her.is_advised(Advice.LEAVE)
    her.enters(100.0)
    assert her.act() is InstructedAct.LOCK_IN
    her.is_advised(Advice.STAY_INSIDE)
    her.passes(READ_MS)
    assert her.act() is InstructedAct.STAY_INSIDE
    her.is_advised(Advice.NONE)
    her.leaves(100.0)
    her.passes(READ_MS)
    assert her.act() is InstructedAct.GO_INDOORS


def test_advice_for_herself_goes_before_advice_for_a_place_and_advice_of_another_order_is_not_hers() -> None:
    her = Person()
    her.enters(1000.0)
    her.is_advised(Advice.STAY_INSIDE, "order-2/home")
    assert her.act() is InstructedAct.GO_INDOORS
    her.is_advised(Advice.STAY_INSIDE, HOME)
    assert her.act() is InstructedAct.STAY_INSIDE
    her.is_advised(Advice.LEAVE)
    her.passes(READ_MS)
    assert her.act() is InstructedAct.LEAVE


def test_advice_of_before_a_calm_is_not_given_after_it() -> None:
    her = Person()
    her.enters(100.0)
    her.is_advised(Advice.STAY_INSIDE)
    her.leaves(100.0)
    her.passes(READ_MS)
    assert her.act() is None
    her.enters(1000.0)
    assert her.act() is InstructedAct.GO_INDOORS


def test_a_drill_gives_way_to_a_live_threat() -> None:
    her = Person()
    her.drills.add("drill")
    her.enters(100.0, incident="drill")
    assert her.present().drill
    her.enters(2000.0)
    assert not her.present().drill and her.present().incident_id == "i1"


def test_two_incidents_give_one_instruction_and_one_all_clear() -> None:
    her = Person()
    her.enters(100.0, incident="i1")
    her.enters(1000.0, incident="i2")
    assert len(her.instructed) == 1
    her.leaves(100.0, "i1", ends=True)
    her.passes(READ_MS)
    assert her.present().incident_id == "i2"
    her.leaves(1000.0, "i2", ends=True)
    her.passes(READ_MS)
    assert [issued.instruction is None for issued in her.instructed] == [False, False, True]


def test_an_incident_that_goes_on_under_a_new_tag_changes_nothing_of_what_she_is_said() -> None:
    her = Person()
    her.enters(100.0, incident="i1")
    her.enters(100.0, incident="i2")
    her.leaves(100.0, "i1", ends=True)
    her.passes(HOUR_MS)
    assert len(her.instructed) == 1


# ── when a threat begins and ends ────────────────────────────────────────────────────────────────────────────────────


def test_alerts_may_arrive_in_any_order() -> None:
    her = Person()
    her.leaves(100.0, sequence=7)
    her.enters(100.0, sequence=5)
    assert her.is_calm()
    her.enters(100.0, sequence=9)
    her.leaves(100.0, sequence=8)
    assert not her.is_calm()
    her.leaves(2000.0, sequence=10, ends=True)
    her.enters(100.0, sequence=9, place_id=HOME)
    assert her.is_calm(), "the incident has ended since"


def test_a_distance_is_news_of_its_ring_and_a_late_one_is_none() -> None:
    her = Person()
    her.enters(1000.0, sequence=5)
    her.hears_distance(1000.0, sequence=7)
    assert len(her.instructed) == 1, "she reads the first one"
    her.passes(READ_MS)
    assert her.figure() == ("a7", "a5")
    her.hears_distance(1000.0, sequence=9)
    her.passes(READ_MS)
    assert her.figure() == ("a9", "a7")
    her.hears_distance(1000.0, sequence=8)
    assert her.figure() == ("a9", "a7")
    her.leaves(1000.0, sequence=12)
    her.hears_distance(1000.0, sequence=11)
    her.hears_distance(2000.0, sequence=11)
    assert her.is_calm()
    her.hears_distance(1000.0, sequence=13)
    assert not her.is_calm(), "within the ring once more, of which she wasn't warned"


def test_a_prediction_ends_with_the_last_ring_or_the_incident() -> None:
    her = Person()
    her.enters(2000.0)
    her.sees(ThreatKind.COMING)
    her.leaves(2000.0)
    assert her.is_calm()
    her.sees(ThreatKind.COMING)
    her.clears("TAMPERED")
    assert not her.is_calm()
    her.leaves(2000.0, ends=True)
    assert her.is_calm()


def test_the_polices_desk_ends_what_its_assignment_was_about() -> None:
    her = Person()
    her.sees(ThreatKind.TAMPERED)
    her.enters(100.0, HOME)
    her.now_ms += HOUR_MS
    her.closes()
    assert her.present().of_place
    her.closes(HOME)
    her.passes(READ_MS)
    assert her.instructed[-1].instruction is None, "an all-clear"
    her.now_ms += HOUR_MS
    her.enters(100.0)
    assert her.act() is InstructedAct.LOCK_IN, "a later alert warns her"


def test_a_unit_that_found_nobody_ends_nothing() -> None:
    her = Person()
    her.sees(ThreatKind.UNSEEN)
    her.now_ms += HOUR_MS
    her.closes(found_nobody=True)
    assert not her.is_calm()


def test_an_alert_that_the_desk_may_not_have_known_outlasts_its_closing() -> None:
    her = Person()
    her.now_ms += 2_000
    her.enters(100.0)
    her.now_ms -= 1_500
    her.closes()
    assert not her.is_calm()


def test_a_distance_within_a_ring_that_the_desk_has_closed_is_as_grave_as_the_ring() -> None:
    her = Person()
    her.enters(100.0)
    her.now_ms += HOUR_MS
    her.closes()
    her.now_ms += HOUR_MS
    her.hears_distance(100.0)
    assert her.present().rank.level is Level.AT_HERSELF


@pytest.mark.parametrize("found_nobody", [True, False])
def test_a_silent_call_ends_with_its_incident_or_when_the_police_close_their_assignment_to_her(
    found_nobody: bool,
) -> None:
    state = evolve(IncidentThreats(), CalledSilently("a5", (5, 0), 1_000))
    assert state.is_open and not state.active
    assert evolve(state, Cleared("a6", (6, 0), "panic")).silent_call, "somebody may have made her take it back"
    assert evolve(state, Cleared("a4", (4, 0), "ring", ends_incident=True)).silent_call, "an end of before it"
    assert not evolve(state, Cleared("a6", (6, 0), "ring", ends_incident=True)).is_open
    assert evolve(state, DeskClosed(HOME, 90_000, found_nobody)).silent_call
    assert not evolve(state, DeskClosed("", 90_000, found_nobody)).is_open


# ── when it is instructed ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_graver_or_nearer_instruction_is_said_at_once_and_another_one_when_the_last_was_read() -> None:
    her = Person()
    her.enters(1000.0)
    her.passes(1)
    her.enters(100.0)
    her.passes(1)
    assert len(her.instructed) == 2
    her.leaves(100.0)
    her.passes(READ_MS - 2)
    assert len(her.instructed) == 2
    her.passes(1)
    assert len(her.instructed) == 3 and her.act() is InstructedAct.GO_INDOORS


def test_what_passes_before_it_was_said_is_never_said() -> None:
    her = Person()
    her.enters(100.0)
    her.enters(100.0, HOME)
    her.leaves(100.0)
    her.enters(100.0)
    her.passes(HOUR_MS)
    assert len(her.instructed) == 1


def test_a_ring_that_is_entered_once_more_right_after_the_all_clear_is_said_at_once() -> None:
    her = Person()
    her.enters(1000.0)
    her.leaves(1000.0)
    her.passes(READ_MS)
    her.enters(1000.0)
    assert [issued.instruction is None for issued in her.instructed] == [False, True, False]


ACTIONS = st.sampled_from(
    [
        *("ring 2000", "ring 1000", "ring 100", "place 100", "unseen", "tampered", "coming", "distance 1000"),
        *("clear 2000", "clear 1000", "clear 100", "clear place", "clear unseen", "clear tampered", "end"),
        *("stay", "leave", "no advice", "close", "close place", "nobody found"),
    ]
)


def play(her: Person, action: str, incident: str) -> None:
    """Lets something happen in an incident."""
    what, _, which = action.partition(" ")
    advice = {"stay": Advice.STAY_INSIDE, "leave": Advice.LEAVE, "no": Advice.NONE}
    ended = {"place": f"{HOME} 100.0", "unseen": "UNSEEN", "tampered": "TAMPERED"}
    if what == "ring":
        her.enters(float(which), incident=incident)
    elif what == "place":
        her.enters(float(which), HOME, incident)
    elif what == "distance":
        her.hears_distance(float(which), incident)
    elif what == "clear":
        her.clears(ended.get(which) or f" {float(which)}", incident)
    elif what == "end":
        her.clears("end", incident, ends=True)
    elif what in advice:
        her.is_advised(advice[what], "", incident)
    elif what in ("close", "nobody"):
        her.closes(HOME if which == "place" else "", incident, found_nobody=what == "nobody")
    else:
        her.sees(ThreatKind[what.upper()], incident=incident)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(ACTIONS, st.sampled_from(["i1", "i2"]), st.sampled_from([0, 1, 5_000, 19_999, 20_000, 120_000])),
        max_size=30,
    )
)
def test_there_is_one_instruction_while_she_is_threatened_and_none_contradicts_the_last_unless_it_is_graver(
    story: list[tuple[str, str, int]],
) -> None:
    her = Person()
    for action, incident, pause_ms in story:
        play(her, action, incident)
        is_threatened = any(state.active for state in her.threats.values())
        assert her.is_calm() != is_threatened
        her.passes(pause_ms)
    # The situation stays as it is: in the time of one reading she has been instructed what applies, and nothing else follows.
    her.passes(READ_MS)
    count, last = len(her.instructed), her.issued.instruction if her.issued else None
    assert (last.content if last else ()) == (() if her.is_calm() else her.present().content)
    her.passes(24 * HOUR_MS)
    assert len(her.instructed) == count, "no clock ends or changes an instruction"
    for earlier, later in itertools.pairwise(her.instructed):
        if earlier.instruction is None or later.instruction is None:
            assert earlier.instruction != later.instruction, "no all-clear twice, and none without an instruction"
        elif later.at_ms - earlier.at_ms < READ_MS:
            assert later.instruction.rank > earlier.instruction.rank
        if later.instruction is None:
            assert later.at_ms - earlier.at_ms >= READ_MS
    for earlier, later in itertools.combinations(her.instructed, 2):
        first, second = earlier.instruction, later.instruction
        if first and second and contradict(first.act, second.act) and later.at_ms - earlier.at_ms < READ_MS:
            assert second.rank > first.rank


@given(st.permutations(list(range(6))))
def test_the_order_of_arrival_of_alerts_decides_nothing(order: list[int]) -> None:
    occurrences: list[Occurrence] = [
        Threatened("a1", (1, 0), 0, "ring", ThreatKind.RING, RESPOND, "order-1", ring_m=100.0),
        Threatened("a2", (2, 0), 0, "unseen", ThreatKind.UNSEEN, RESPOND, "order-1"),
        Cleared("a3", (3, 0), "ring"),
        Threatened("a4", (4, 0), 0, "ring", ThreatKind.RING, RESPOND, "order-1", ring_m=100.0),
        Cleared("a5", (5, 0), "unseen"),
        Threatened("a6", (6, 0), 0, "place", ThreatKind.RING, NOTIFY, "order-1", HOME, 1000.0),
    ]
    state = IncidentThreats()
    for index in order:
        state = evolve(state, occurrences[index])
    present = instruct([WarnedIncident("i1", state)])
    assert present and (present.act, present.ring_m, present.is_unseen) == (InstructedAct.LOCK_IN, 100.0, False)
    assert sorted(threat.ring_m for threat in state.active) == [100.0, 1000.0]


# ── how long it lasts ────────────────────────────────────────────────────────────────────────────────────────────────


def of_demand(demand: Demand) -> Instruction:
    her = Person()
    her.sees(ThreatKind.TAMPERED, demand)
    return her.present()


def repeats(instruction: Instruction, receipt: ReceiptKind | None, within_ms: int) -> list[int]:
    """Times at which an instruction is repeated, milliseconds after its first sending."""
    at_ms, found = 0, list[int]()
    while (after_ms := repeat_after_ms(instruction, receipt, len(found))) is not None:
        at_ms += after_ms
        if at_ms > within_ms:
            break
        found.append(at_ms)
    return found


def test_what_no_phone_has_confirmed_is_repeated_soon_and_no_night_is_filled_with_it() -> None:
    unconfirmed = repeats(of_demand(RESPOND), None, 8 * HOUR_MS)
    assert unconfirmed[:4] == [60_000, 180_000, 420_000, 900_000] and len(unconfirmed) <= 8
    read = repeats(of_demand(RESPOND), ReceiptKind.DISPLAYED, 8 * HOUR_MS)
    assert read[0] == 600_000 and len(read) <= 5
    assert repeats(of_demand(RESPOND), ReceiptKind.DELIVERED, 8 * HOUR_MS)[0] == 300_000
    assert repeat_after_ms(of_demand(RESPOND), None, 1_000_000) == MAX_REPEAT_MS


@pytest.mark.parametrize("demand", [WARN, NOTIFY])
def test_what_demands_no_response_is_not_repeated_once_a_phone_has_it(demand: Demand) -> None:
    assert repeats(of_demand(demand), None, HOUR_MS)
    assert all(not repeats(of_demand(demand), receipt, HOUR_MS) for receipt in ReceiptKind)


def test_an_all_clear_is_shown_until_it_was_read_and_an_instruction_for_ever() -> None:
    instructed = Last(MessageKind.INSTRUCTION, 0, 1_000)
    assert choose_shown([instructed], 365 * 24 * HOUR_MS) == 0
    for displayed_ms, until_ms in ((None, ALL_CLEAR_MS), (5_000, 5_000 + ALL_CLEAR_READ_MS)):
        over = Last(MessageKind.OVER, 0, displayed_ms)
        assert choose_shown([over], until_ms - 1) == 0 and choose_shown([over], until_ms) is None


def test_an_open_notice_of_the_ministry_is_shown_where_the_police_say_nothing() -> None:
    notice, over = Last(MessageKind.MINISTRY, 5, None), Last(MessageKind.OVER, 9, None)
    assert choose_shown([Last(MessageKind.INSTRUCTION, 0, None), notice], HOUR_MS) == 0
    assert choose_shown([over, notice], 10) == 1
    assert choose_shown([Last(MessageKind.ONE_OVER, 0, None)], 1) is None
    assert choose_shown([], 1) is None
