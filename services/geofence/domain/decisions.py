"""The decisions of one entry: numbers alerts, opens and ends episodes and incidents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from services.common.ids import hash_id
from services.geofence.domain import demands
from services.geofence.domain.alerts import Alert, AlertKind, AnomalyKind, CausingReport, DeadLetter, Leg, Output
from services.geofence.domain.demands import Detection
from services.geofence.domain.entries import Demand, Encounter, Ring, Target
from services.geofence.domain.kinematics import safe_region
from services.geofence.domain.kinematics.rings import Account
from services.geofence.domain.state import CaseState, OpenIncident, Outage, State
from services.geofence.domain.version import VERSION


class Decisions:
    """The outputs of one entry, in order, and their effect on episodes and incidents."""

    def __init__(self, state: State, sequence: int, stamp_ms: int) -> None:
        self.state = state
        self.sequence = sequence
        self._stamp_ms = stamp_ms
        self.out: list[Output] = []
        self._named: Counter[tuple[str | int, ...]] = Counter()

    def _id(self, kind: str, *what: str | int) -> str:
        """An id of one output of this entry, whatever other outputs the entry has.

        The output's position isn't part of the id. Otherwise a newer fold that detects more in an old log would give its new alerts
        ids that are already in use, and they would be lost. The entry's stamp is part of it, because a log that was restored reuses
        its sequences for other entries.
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
        for i, output in enumerate(self.out):
            if isinstance(output, DeadLetter):
                if reason not in output.reason.split("; "):
                    self.out[i] = replace(output, reason=f"{output.reason}; {reason}")
                return
        self.out.append(DeadLetter(self.sequence, reason))

    def alert(
        self,
        case_state: CaseState,
        kind: AlertKind,
        demand: Demand,
        *,
        at_ms: int,
        target: Target | None = None,
        ring: Ring | None = None,
        cause: CausingReport | None = None,
        distance_mm: float | None = None,
        p: float | None = None,
        inside: tuple[tuple[int, int], ...] = (),
        min_mm: float | None = None,
        due_ms: int | None = None,
        encounter: Encounter | None = None,
        record_only: bool = False,
        anomaly: AnomalyKind | None = None,
        outage_id: str = "",
        amended: Account | None = None,
    ) -> str:
        """Adds an alert and returns its id.

        The first alert that demands more than RECORD opens the episode, and with it the wearer's incident. `due_ms` is the earliest
        moment of the decision, where it isn't `at_ms`; an alert much later than that is late. A `record_only` alert is stored
        without destinations: to a leg a RECORD would mean that a threat is over. An alert that `amended` an account takes the
        account's episode and incident, which may be over.
        """
        state, case = self.state, case_state.case
        ordinal = len(self.out)
        opens = False
        if demand > Demand.RECORD and not case_state.episode_id:
            case_state.episode_id = self._id("episode", case.case_id)
            safe_region.drop_case(state, case)
            incident = state.incidents.get(case.wearer_id)
            if incident is None:
                opens = True
                incident = OpenIncident(self._id("incident", case.wearer_id))
                state.incidents[case.wearer_id] = incident
            incident.case_ids.append(case.case_id)
        open_incident = state.incidents.get(case.wearer_id)
        ring_mm = ring.radius_mm if ring else 0
        target_key = target.key if target else ""
        alert_id = self._id("alert", case.case_id, kind.value, demand.value, target_key, ring_mm)
        self.out.append(
            Alert(
                alert_id=alert_id,
                sequence=self.sequence,
                ordinal=ordinal,
                kind=kind,
                demand=demand,
                order_id=case.order_id,
                case_id=case.case_id,
                episode_id=amended.episode_id if amended else case_state.episode_id,
                incident_id=amended.incident_id if amended else open_incident.incident_id if open_incident else "",
                wearer_id=case.wearer_id,
                target_id=target.target_id if target else "",
                ring_mm=ring_mm,
                at_ms=at_ms,
                decided_at_ms=state.now_ms,
                late=state.now_ms - (at_ms if due_ms is None else due_ms) >= state.rules.late_after_ms,
                destinations=() if record_only else demands.destinations(case, kind, demand, target=target),
                incident_opens=opens,
                incident_ends=False,
                cause=cause,
                cause_of_wearer=cause is not None and cause.device_id in case.tag_device_ids,
                distance_mm=distance_mm,
                probability=p,
                fold_version=VERSION,
                rules_id=state.rules.rules_id,
                inside=inside,
                min_distance_mm=min_mm,
                amends=amended.alert_id if amended else "",
                encounter_id=encounter.encounter_id if encounter else "",
                exercise=case.exercise,
                anomaly=anomaly,
                outage_id=outage_id,
            )
        )
        return alert_id

    def outage_ids(self) -> tuple[str, str]:
        """Ids of a new outage, and of the incident under which the legs keep its notice."""
        return self._id("outage"), self._id("incident", "outage")

    def outage_alert(self, outage: Outage, kind: AlertKind, demand: Demand, *, at_ms: int, silent: int) -> None:
        """Adds the notice of an outage or its all-clear. It belongs to no case or wearer, and its incident ends at once."""
        state = self.state
        self.out.append(
            Alert(
                alert_id=self._id("alert", outage.outage_id, kind.value, demand.value),
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
                late=state.now_ms - at_ms >= state.rules.late_after_ms,
                destinations=((Leg.PROBATION, outage.outage_id), (Leg.POLICE, outage.outage_id)),
                incident_opens=demand > Demand.RECORD,
                incident_ends=True,
                cause=None,
                cause_of_wearer=False,
                distance_mm=None,
                probability=None,
                fold_version=VERSION,
                rules_id=state.rules.rules_id,
                outage_id=outage.outage_id,
                outage_silent=silent,
                outage_watched=len(state.watched),
            )
        )

    def end_all_if_quiet(self, case_states: Iterable[CaseState]) -> None:
        """Ends quiet episodes of several cases after all their decisions: alerts under several orders belong to one incident."""
        for case_state in case_states:
            self.end_if_quiet(case_state)

    def end_if_quiet(self, case_state: CaseState) -> None:
        """Ends the episode if nothing of it is open, and the incident if that was the wearer's last episode.

        Every decision about a case calls this in the same entry, so that some alert of the entry can announce the end of the
        incident.
        """
        if not case_state.episode_id or not case_state.is_quiet:
            return
        incident = self.state.incidents[case_state.case.wearer_id]
        incident.case_ids.remove(case_state.case.case_id)
        if not incident.case_ids:
            self._end_incident(case_state, incident)
        case_state.episode_id = ""
        case_state.approaching_since_ms.clear()
        case_state.warned.clear()
        case_state.withheld.clear()
        case_state.ways.clear()

    def _end_incident(self, case_state: CaseState, incident: OpenIncident) -> None:
        """Marks the last alert of the incident as its end."""
        last = self._last_alert(incident)
        if last is None:
            # This is a defect, but stopping here would be worse: each evaluator would stop at this entry at each start and decide
            # on nobody. The legs learn that nothing is open, and the reason is kept.
            self.dead_letter("an incident ended without an alert")
            kind, demand = demands.DETECTIONS[Detection.POSITION_REGAINED]
            self.alert(case_state, kind, demand, at_ms=self.state.now_ms)
            last = self._last_alert(incident)
        del self.state.incidents[case_state.case.wearer_id]
        if last is not None:
            place, ending = last
            self.out[place] = replace(ending, incident_ends=True)

    def _last_alert(self, incident: OpenIncident) -> tuple[int, Alert] | None:
        """The newest alert of an incident and its index. The search goes backwards: it is nearly always the last output."""
        for i in reversed(range(len(self.out))):
            output = self.out[i]
            if isinstance(output, Alert) and output.incident_id == incident.incident_id:
                return i, output
        return None
