"""Decisions of one entry: numbers alerts, opens and ends episodes and incidents, and names the hooks by which a detector is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, NamedTuple

from services.common.ids import hash_id
from services.geofence.domain import demands, notices, safe_region
from services.geofence.domain.alerts import (
    Alert,
    AnomalyKind,
    CausingReport,
    DeadLetter,
    FirstContact,
    MinistryNotice,
    Output,
    Request,
)
from services.geofence.domain.demands import AlertKind, AlertType, Detection, Leg
from services.geofence.domain.entries import FOLD_VERSION, Case, Demand, Encounter, Ring, Target
from services.geofence.domain.kinematics.rings import Account
from services.geofence.domain.state import CasePart, CaseState, OpenIncident, Outage, State

NOTICE_ENDED = AlertType(AlertKind.NOTICE_ENDED, Demand.RECORD)


@dataclass(frozen=True, slots=True)
class AlertDraft:
    """The part of an alert that a detector decides. `Decisions.alert` adds the rest from the case and the entry."""

    alert_type: AlertType
    at_ms: int
    """The moment in the world for which the decision holds."""
    _: KW_ONLY
    target: Target | None = None
    ring: Ring | None = None
    cause: CausingReport | None = None
    distance_mm: float | None = None
    p: float | None = None
    """Probability of being inside."""
    inside: tuple[tuple[int, int], ...] = ()
    min_mm: float | None = None
    min_is_assumed: bool = False
    """Whether the least distance is that of the entry, at a moment at which the position of one side is still unknown."""
    due_ms: int | None = None
    """The earliest moment of the decision, if it isn't `at_ms`. An alert long after that moment is marked late."""
    encounter: Encounter | None = None
    record_only: bool = False
    """Whether the alert is stored without destinations, because a leg would read its RECORD as the end of a threat."""
    anomaly: AnomalyKind | None = None
    outage_id: str = ""
    removal_id: str = ""
    """Id of the authorised removal of a tag that the alert is about."""
    silent: bool = False
    """PANIC: whether the protected person called in silence."""
    is_known_stay: bool = False
    """Whether the protected persons know that the wearer stays within the ring, so that they aren't warned of the entry once more."""
    ended_notice: MinistryNotice | None = None
    """NOTICE_ENDED: the notice that has ended. The alert's destinations are its persons."""
    unconfirmed: bool = False
    """Whether the alert ends something although no report shows that it is over."""
    amended: Account | None = None
    """The account that the alert amends. The alert takes the account's episode and incident, which may be over."""
    contact: FirstContact | None = None
    """The first contact with the wearer; None if the decision says nothing about one."""


class Decisions:
    """The outputs of one entry, in order, and their effect on episodes and incidents."""

    def __init__(self, state: State, sequence: int, stamp_ms: int) -> None:
        self.state = state
        self.sequence = sequence
        self._stamp_ms = stamp_ms
        self.out: list[Output] = []
        self._requests: list[Request] = []
        self._named: Counter[tuple[str | int, ...]] = Counter()
        self._reasons: dict[str, None] = {}
        """Reasons why the entry or a part of it is set aside, in order."""

    def new_id(self, kind: str, *what: str | int) -> str:
        """Makes the id of one output of this entry. The id doesn't depend on other outputs of the entry.

        The output's position isn't part of the id. Otherwise a newer fold that detects more in an old log would give its new alerts ids
        that are already in use, and they would be lost. The entry's stamp is part of the id, because a log that was restored reuses its
        sequences for other entries.
        """
        name = (kind, *what)
        self._named[name] += 1
        state = self.state
        return hash_id(kind, state.log_id, state.partition, self.sequence, self._stamp_ms, *what, self._named[name])

    def dead_letter(self, reason: str) -> None:
        """Sets the entry or a part of it aside as a dead letter.

        Each entry gives one dead letter with all reasons, because DEAD_LETTERS accepts one per entry. A reason must not contain a
        semicolon.
        """
        is_first = not self._reasons
        self._reasons[reason] = None
        letter = DeadLetter(self.sequence, "; ".join(self._reasons))
        if is_first:
            self.out.append(letter)
        else:
            self.out = [letter if isinstance(output, DeadLetter) else output for output in self.out]

    def alert(self, case_state: CaseState, draft: AlertDraft) -> str:
        """Adds an alert of a case and returns its id.

        The first alert that demands more than RECORD opens the episode, and with it the wearer's incident.
        """
        state, case = self.state, case_state.case
        kind, demand = draft.alert_type
        opens = demand > Demand.RECORD and not case_state.episode_id and self._open_episode(case_state)
        target = draft.target
        cause = draft.cause
        amended = draft.amended
        ring_mm = draft.ring.radius_mm if draft.ring else 0
        about = (kind.value, demand.value, target.key if target else "", ring_mm)
        alert_id, to = self.new_id("alert", case.case_id, *about), _destinations(case, draft)
        demanded = _notice_demand(state, case_state, draft, to=to)
        self.out.append(
            Alert(
                alert_id=alert_id,
                sequence=self.sequence,
                ordinal=len(self.out),
                kind=kind,
                demand=demand,
                order_id=case.order_id,
                case_id=case.case_id,
                episode_id=amended.episode_id if amended else case_state.episode_id,
                incident_id=amended.incident_id if amended else _open_incident_id(state, case),
                wearer_id=case.wearer_id,
                target_id=target.target_id if target else "",
                ring_mm=ring_mm,
                at_ms=draft.at_ms,
                decided_at_ms=state.now_ms,
                late=_is_late(state, draft.at_ms if draft.due_ms is None else draft.due_ms),
                destinations=to,
                incident_opens=opens,
                incident_ends=False,
                cause=cause,
                cause_of_wearer=cause is not None and cause.device_id in case.tag_device_ids,
                distance_mm=draft.distance_mm,
                probability=draft.p,
                fold_version=FOLD_VERSION,
                rules_id=state.rules.rules_id,
                inside=draft.inside,
                min_distance_mm=draft.min_mm,
                min_distance_assumed=draft.min_is_assumed,
                amends=amended.alert_id if amended else "",
                unconfirmed=draft.unconfirmed,
                encounter_id=draft.encounter.encounter_id if draft.encounter else "",
                exercise=case.exercise,
                anomaly=draft.anomaly,
                outage_id=draft.outage_id,
                notice=demanded.notice,
                checks=demanded.checks,
                removal_id=draft.removal_id,
                silent=draft.silent,
                contact=draft.contact,
            )
        )
        return alert_id

    def _open_episode(self, case_state: CaseState) -> bool:
        """Opens the episode of a case, and the wearer's incident if none is open. Returns whether the incident begins."""
        state, case = self.state, case_state.case
        case_state.episode_id = self.new_id("episode", case.case_id)
        safe_region.drop_case(state, case)
        begins = case.wearer_id not in state.incidents
        if begins:
            state.incidents[case.wearer_id] = OpenIncident(self.new_id("incident", case.wearer_id))
        state.incidents[case.wearer_id].case_ids.append(case.case_id)
        return begins

    def put_request(self, request: Request) -> None:
        """Adds an output for a device. `finish` numbers it."""
        self._requests.append(request)

    def finish(self) -> list[Output]:
        """All outputs of the entry. The requests come last, so that no alert's ordinal depends on them."""
        if not self._requests:
            return self.out  # nearly always
        first = len(self.out)
        return [
            *self.out,
            *(
                request if request.ordinal == first + i else replace(request, ordinal=first + i)
                for i, request in enumerate(self._requests)
            ),
        ]

    def outage_ids(self) -> tuple[str, str]:
        """Ids of a new outage, and of the incident under which the legs keep its notice."""
        return self.new_id("outage"), self.new_id("incident", "outage")

    def outage_alert(self, outage: Outage, detection: Detection, *, at_ms: int, silent: int) -> None:
        """Adds the notice of an outage or its all-clear. It belongs to no case or wearer, and its incident ends at once."""
        state = self.state
        kind, demand = detection.alert_type
        self.out.append(
            Alert(
                alert_id=self.new_id("alert", outage.outage_id, kind.value, demand.value),
                sequence=self.sequence,
                ordinal=len(self.out),
                kind=kind,
                demand=demand,
                order_id=outage.outage_id,
                case_id="",
                episode_id="",
                incident_id=outage.incident_id,
                wearer_id="",
                target_id="",
                ring_mm=0,
                at_ms=at_ms,
                decided_at_ms=state.now_ms,
                late=_is_late(state, at_ms),
                destinations=((Leg.PROBATION, outage.outage_id), (Leg.POLICE, outage.outage_id)),
                incident_opens=demand > Demand.RECORD,
                incident_ends=True,
                cause=None,
                cause_of_wearer=False,
                distance_mm=None,
                probability=None,
                fold_version=FOLD_VERSION,
                rules_id=state.rules.rules_id,
                outage_id=outage.outage_id,
                outage_silent=silent,
                outage_watched=len(state.watched),
            )
        )

    def end_all_if_quiet(self, case_states: Iterable[CaseState]) -> None:
        """Ends quiet episodes of several cases, after all their decisions: alerts under several orders may belong to one incident."""
        for case_state in case_states:
            self.end_if_quiet(case_state)

    def end_if_quiet(self, case_state: CaseState) -> None:
        """Ends the episode if nothing in it is active, and the incident if that was the wearer's last episode.

        Every decision about a case calls this in the same entry, so that an alert of the entry can announce the incident's end.
        """
        if not case_state.episode_id:
            return
        if over := _ended_notice(case_state, self.state.now_ms):
            self.alert(case_state, over)
        if not case_state.is_quiet:
            return
        incident = self.state.incidents[case_state.case.wearer_id]
        incident.case_ids.remove(case_state.case.case_id)
        if not incident.case_ids:
            self._end_incident(case_state, incident)
        case_state.end_episode()

    def _end_incident(self, case_state: CaseState, incident: OpenIncident) -> None:
        """Marks the last alert of the incident as its end."""
        last = _last_alert(self.out, incident)
        if last is None:
            # This is a defect, but stopping here would be worse: each evaluator would stop at this entry at each start and decide
            # on nobody. The legs learn that nothing is open, and the reason is kept.
            self.dead_letter("an incident ended without an alert")
            self.alert(case_state, AlertDraft(Detection.POSITION_REGAINED.alert_type, self.state.now_ms))
            last = _last_alert(self.out, incident)
        del self.state.incidents[case_state.case.wearer_id]
        if last is not None:
            place, ending = last
            self.out[place] = replace(ending, incident_ends=True)


def _open_incident_id(state: State, case: Case) -> str:
    """Id of the wearer's open incident; empty if none is open."""
    incident = state.incidents.get(case.wearer_id)
    return incident.incident_id if incident else ""


def _ended_notice(case_state: CaseState, now_ms: int) -> AlertDraft | None:
    """The alert that the open notices of a case have ended, as far as nothing keeps them open; None if none has ended."""
    over = notices.ended(case_state)
    until_ms = case_state.case.valid_until_ms
    at_ms = min(now_ms, until_ms) if case_state.ended and until_ms is not None else now_ms
    return AlertDraft(NOTICE_ENDED, at_ms, ended_notice=over) if over else None


def _destinations(case: Case, draft: AlertDraft) -> tuple[tuple[Leg, str], ...]:
    """Destinations of a drafted alert."""
    if draft.ended_notice is not None:
        return tuple((Leg.WARNING, person_id) for person_id in draft.ended_notice.person_ids)
    if draft.record_only:
        return ()
    kind, demand = draft.alert_type
    to = demands.destinations(case, kind, demand, target=draft.target)
    if draft.is_known_stay:
        return tuple(destination for destination in to if destination[0] is not Leg.WARNING)
    return to


def _notice_demand(
    state: State, case_state: CaseState, draft: AlertDraft, *, to: Sequence[tuple[Leg, str]]
) -> notices.NoticeDemand:
    """The Ministry's notice of a drafted alert with these destinations, and the checks that it demands."""
    kind, demand = draft.alert_type
    if draft.ended_notice is not None or demand is Demand.RECORD:
        return notices.NoticeDemand(draft.ended_notice)
    warned_ids = [subject_id for leg, subject_id in to if leg is Leg.WARNING]
    about = notices.NoticeCause(kind=kind, demand=demand, target=draft.target, ring=draft.ring)
    return notices.demanded(state, case_state, about, warned_ids=warned_ids)


def _is_late(state: State, due_ms: int) -> bool:
    return state.now_ms - due_ms >= state.rules.late_after_ms


def _last_alert(outputs: Sequence[Output], incident: OpenIncident) -> tuple[int, Alert] | None:
    """The newest alert of an incident and its index. The search goes backwards: it is nearly always the last output.

    The end of a notice comes last, and doesn't say why the incident ends. It is returned only if there is no other alert.
    """
    notice_ended = None
    for i in reversed(range(len(outputs))):
        output = outputs[i]
        if isinstance(output, Alert) and output.incident_id == incident.incident_id:
            if output.kind is not AlertKind.NOTICE_ENDED:
                return i, output
            notice_ended = notice_ended or (i, output)
    return notice_ended


class CaseContext(NamedTuple):
    """Context of a decision about a case: the outputs of the entry, the case, and the report that caused the decision."""

    decisions: Decisions
    case_state: CaseState
    cause: CausingReport | None = None
    """None if time alone, or an entry without a report, caused the decision."""

    @property
    def state(self) -> State:
        """The fold's state."""
        return self.decisions.state

    @property
    def case(self) -> Case:
        """The newest snapshot of the case."""
        return self.case_state.case

    def alert(self, draft: AlertDraft) -> str:
        """Adds an alert of the case and returns its id."""
        return self.decisions.alert(self.case_state, draft)


class Movement(NamedTuple):
    """A stretch of time in which a fix changes the known movement of a device."""

    device_id: str
    from_ms: int
    until_ms: int | None
    """None if the fix is the newest of its device."""


class Amendment(NamedTuple):
    """A new snapshot of a case, which replaces the old one after all detectors have seen both."""

    case: Case
    in_force: bool
    """Whether the new snapshot's order is already in force."""

    def watches(self, target_key: str) -> bool:
        """Whether the order is in force, and both the wearer and a target of it can be located."""
        targets = self.case.targets if self.in_force else ()
        return any(target.key == target_key and self.case.can_locate(target) for target in targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """The hooks of a detector; a hook that the detector doesn't need is None.

    `pipeline.DETECTORS` lists all detectors in the order in which each hook is called.
    """

    on_fix: Callable[[CaseContext, Movement], None] | None = None
    """A fix changes the known movement of a device of the case. The hook isn't called for a fix within a safe region: `range_mm` says
    which fixes the detector needs. When a case begins, the hook is called for the known position of each tag."""
    on_batch: Callable[[CaseContext, CausingReport | None], None] | None = None
    """All fixes of an entry are known, and a device of a case with an open episode moved. The second argument is the last report that
    was the newest of its device; None if there was none."""
    on_time: Callable[[CaseContext, int], Iterable[int]] | None = None
    """Time passed up to a moment. The hook returns the moments of the next checks: none if only a report can change anything."""
    on_amend: Callable[[CaseContext, Amendment], None] | None = None
    """A new snapshot is about to replace the case's current one. The hook closes everything that the new snapshot no longer asks
    for."""
    on_end: Callable[[CaseContext], None] | None = None
    """The order is no longer valid. The hook closes everything as of the end of the validity."""
    awaits_report: Callable[[CaseState], bool] | None = None
    """Whether `on_time` is called after each report of the case, because a report may change a decision that rests on time alone."""
    range_mm: Callable[[State, CaseState], float] | None = None
    """Distance from a place within which the detector needs each fix of a tag, mm; infinite where it needs all fixes of the case."""
    why: Mapping[Detection, str] = field(default_factory=dict)
    """Sentences for people who ask why an alert was emitted, for detections whose names don't say it."""
    parts: tuple[CasePart[Any], ...] = ()
    """The detector's memory of a case."""
