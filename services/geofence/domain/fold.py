"""The fold: `step(state, entry)` applies one entry of the log and returns what it puts out.

"Now" is the greatest stamp so far. Nothing here reads a clock, does I/O or draws a number, so the same log gives the same
alerts, byte for byte, on every evaluator and on every replay.
"""

from __future__ import annotations

import heapq
from dataclasses import replace

from services.common.errors import OutdatedFold
from services.common.ids import hash_id
from services.geofence.domain import demands, probability, rings
from services.geofence.domain.alerts import Alert, Cause, Kind, Output, Parked
from services.geofence.domain.entries import (
    Case,
    Demand,
    Entry,
    Equipment,
    EquipmentReport,
    FoldVersion,
    Positions,
    Ring,
    Target,
    Tick,
)
from services.geofence.domain.geometry import ecef_mm
from services.geofence.domain.rings import RingState
from services.geofence.domain.rules import Rules
from services.geofence.domain.state import REMEMBERED_REPORTS, CaseState, Incident, State, event_key
from services.geofence.domain.track import WINDOW_MS, Fix, Track

VERSION = 1
"""Version of this fold. It grows with every change that could alter a decision; the log tells older processes to stop."""


def step(state: State, entry: Entry) -> list[Output]:
    """Applies an entry, in place, and returns alerts and parked parts in their order.

    Raises OutdatedFold where the log demands a newer version. Any other exception is a defect: the process must end and replay.
    """
    folding = _Folding(state, entry.sequence)
    body = entry.body
    state.sequence = entry.sequence
    folding.pass_time(state.clock_anchor_ms + (entry.stamp_ms - state.clock_anchor_ms) * state.clock_rate)
    match body:
        case Positions():
            folding.positions(body)
        case EquipmentReport():
            folding.equipment(body)
        case Case():
            folding.case(body)
        case Rules():
            state.rules = body
        case FoldVersion():
            if body.version > VERSION:
                raise OutdatedFold(f"the log demands fold version {body.version}, this is {VERSION}")
        case Tick():
            pass
    return folding.out


def next_due_ms(state: State) -> int | None:
    """The next moment at which time alone decides something: a tick must follow it."""
    return state.due[0][0] if state.due else None


def others(target: Target) -> tuple[str | None, ...]:
    """Devices on the other side of the wearer's; a place is there without one (None)."""
    return target.device_ids if target.is_person else (None,)


def pairs(state: State, case_state: CaseState, target: Target) -> list[tuple[Track, Track | None]]:
    """Each tag of the wearer with each device of the target (None: a place); those that have reported."""
    tags = [state.tracks[tag_id] for tag_id in case_state.case.tag_device_ids if tag_id in state.tracks]
    if not target.is_person:
        return [(tag, None) for tag in tags]
    devices = [state.tracks[device_id] for device_id in target.device_ids if device_id in state.tracks]
    return [(tag, device) for tag in tags for device in devices]


def account(state: State, case_state: CaseState, target: Target, ring: Ring, upto_ms: int) -> None:
    """Accounts for a ring's time inside, by what is known for sure, up to a moment."""
    ring_state = case_state.rings[target.target_id, ring.radius_mm]
    case = case_state.case
    from_ms = reached_ms = max(ring_state.bound_ms, case.valid_from_ms)
    for wearer, device in pairs(state, case_state, target):
        known_ms = rings.known_until(wearer, device)
        end_ms = min(upto_ms, known_ms, case.valid_until_ms) if known_ms is not None else from_ms
        if end_ms > from_ms:
            pieces = rings.joined(wearer, device, from_ms, end_ms)
            rings.account(ring_state, target.shape, ring.radius_mm, pieces)
            reached_ms = max(reached_ms, end_ms)
    ring_state.bound_ms = reached_ms


class _Folding:
    """The application of one entry."""

    def __init__(self, state: State, sequence: int) -> None:
        self.state = state
        self.sequence = sequence
        self.out: list[Output] = []

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def pass_time(self, now_ms: int) -> None:
        """Moves to `now_ms`, past the beginnings and ends of cases on the way."""
        state = self.state
        arrived_ms = max(state.now_ms, now_ms)
        while state.due and state.due[0][0] <= arrived_ms:
            due_ms, case_id, version = heapq.heappop(state.due)
            case_state = state.cases.get(case_id)
            if case_state is None or case_state.case.version != version:
                continue  # a newer snapshot has set its own moments
            state.now_ms = max(state.now_ms, arrived_ms)
            if due_ms >= case_state.case.valid_until_ms:
                self._end(case_state)
            else:
                self._decide_on_what_is_known(case_state, due_ms)
        state.now_ms = arrived_ms

    def _end(self, case_state: CaseState) -> None:
        """The order's validity is over: what is open is closed as of that moment."""
        case = case_state.case
        self._close(case_state, case.targets, case.valid_until_ms)
        case_state.ended = True
        self._take_back(case_state, tuple(case_state.raised), case.valid_until_ms)
        self.state.forget(case)
        self._settle_episode(case_state)

    # ── cases ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def case(self, case: Case) -> None:
        """A case as it stands from now on. What is known of both sides decides at once, without a new report."""
        state = self.state
        now_ms = state.now_ms
        before = state.cases.get(case.case_id)
        if before is not None:
            if case.version <= before.case.version:
                return
            kept = {(t.target_id, r.radius_mm, t.shape) for t in case.targets for r in case.rings}
            for target in before.case.targets:
                gone = [r for r in before.case.rings if (target.target_id, r.radius_mm, target.shape) not in kept]
                self._close(before, (target,), now_ms, gone)
                for ring in gone:
                    before.rings.pop((target.target_id, ring.radius_mm), None)
            named = {*case.tag_device_ids, *(d for target in case.targets for d in target.device_ids)}
            self._take_back(before, tuple(key for key in before.raised if key.split()[1] not in named), now_ms)
            state.forget(before.case)
            before.case = case
        case_state = before or CaseState(case)
        resumed = case_state.ended
        case_state.ended = now_ms >= case.valid_until_ms
        state.cases[case.case_id] = case_state
        if case_state.ended:
            self._end(case_state)
            return
        state.index(case)
        for target in case.targets:
            for ring in case.rings:
                ring_state = case_state.rings.setdefault(
                    (target.target_id, ring.radius_mm), RingState(case.valid_from_ms)
                )
                if resumed:
                    ring_state.bound_ms = max(now_ms, case.valid_from_ms)
        if case.valid_from_ms > now_ms:
            heapq.heappush(state.due, (case.valid_from_ms, case.case_id, case.version))
        heapq.heappush(state.due, (case.valid_until_ms, case.case_id, case.version))
        if case.valid_from_ms <= now_ms:
            self._decide_on_what_is_known(case_state, now_ms)
        self._settle_episode(case_state)

    def _decide_on_what_is_known(self, case_state: CaseState, at_ms: int) -> None:
        for tag_id in case_state.case.tag_device_ids:
            for target in case_state.case.targets:
                for device_id in others(target):
                    self._look(case_state, tag_id, target, device_id, at_ms, at_ms, None)

    # ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def positions(self, batch: Positions) -> None:
        """Folds a batch, report by report, in its order."""
        state = self.state
        too_late = 0
        for device_id, report_id, fix_time_ms, lat_e7, lon_e7, accuracy_mm in zip(
            batch.device_ids,
            batch.report_ids,
            batch.fix_times_ms,
            batch.lat_e7,
            batch.lon_e7,
            batch.accuracy_mm,
            strict=True,
        ):
            time_ms = min(fix_time_ms, state.now_ms)
            if time_ms < state.now_ms - WINDOW_MS:
                too_late += 1
                continue
            track = state.tracks.get(device_id)
            if track is None:
                track = state.tracks[device_id] = Track()
            fix = Fix(time_ms, report_id, *ecef_mm(lat_e7, lon_e7), accuracy_mm)
            index = track.add(fix)
            if index is None:
                continue  # sent again
            case_ids = state.cases_of.get(device_id)
            if case_ids:
                cause = Cause(device_id, report_id, batch.received_wall_us)
                self._moved(device_id, track, index, case_ids, cause)
                if len(track.fixes) % 64 == 0:
                    self._forget_old(device_id, track, case_ids)
            elif len(track.fixes) > 2:
                # No case names the device: its newest positions are enough for an order that is yet to come.
                track.forget_before(state.now_ms)
        if too_late:
            self.out.append(Parked(self.sequence, f"{too_late} positions older than 2 h"))

    def _moved(self, device_id: str, track: Track, index: int, case_ids: list[str], cause: Cause) -> None:
        """Looks at the stretch of time in which a new fix changes what is known."""
        fixes = track.fixes
        from_ms = fixes[index - 1].time_ms if index else fixes[0].time_ms
        until_ms = fixes[index + 1].time_ms if index + 1 < len(fixes) else None
        for case_id in case_ids:
            case_state = self.state.cases[case_id]
            case = case_state.case
            if device_id in case.tag_device_ids:
                for target in case.targets:
                    for other_id in others(target):
                        self._look(case_state, device_id, target, other_id, from_ms, until_ms, cause)
            else:
                for target in case.targets:
                    if device_id in target.device_ids:
                        for tag_id in case.tag_device_ids:
                            self._look(case_state, tag_id, target, device_id, from_ms, until_ms, cause)
            if case_state.episode_id:
                self._clear(case_state, cause)

    def _look(
        self,
        case_state: CaseState,
        tag_id: str,
        target: Target,
        device_id: str | None,
        from_ms: int,
        until_ms: int | None,
        cause: Cause | None,
    ) -> None:
        """Enters the rings that the wearer is or was within between two moments (None: as far as anything is known)."""
        state, case = self.state, case_state.case
        wearer = state.tracks.get(tag_id)
        device = state.tracks.get(device_id) if device_id is not None else None
        if wearer is None or not wearer.fixes or (device_id is not None and (device is None or not device.fixes)):
            return
        outside = [ring for ring in case.rings if not case_state.rings[target.target_id, ring.radius_mm].open]
        if not outside:
            return
        if until_ms is None:
            until_ms = max(wearer.fixes[-1].time_ms, device.fixes[-1].time_ms if device else 0)
        until_ms = min(until_ms, case.valid_until_ms - 1)
        from_ms = max(from_ms, case.valid_from_ms)
        if from_ms > until_ms:
            return
        ways = rings.assumed(wearer, device, from_ms, until_ms)
        if not rings.may_reach(ways, target.shape, outside[0].radius_mm):
            return
        for ring in outside:
            ring_state = case_state.rings[target.target_id, ring.radius_mm]
            for pieces in ways:
                found = rings.first_within(pieces, target.shape, ring.radius_mm, ring_state.bound_ms)
                if found:
                    at_ms, distance_mm = found
                    ring_state.enter(at_ms, distance_mm)
                    accuracies = [wearer.fixes[-1].accuracy_mm] + ([device.fixes[-1].accuracy_mm] if device else [])
                    self._alert(
                        case_state,
                        Kind.RING_ENTERED,
                        demands.of_ring(ring.action, entered=True),
                        at_ms,
                        target=target,
                        ring=ring,
                        cause=cause,
                        distance_mm=distance_mm,
                        p=probability.inside(distance_mm, ring.radius_mm, tuple(accuracies)),
                    )
                    break

    # ── clearing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _clear(self, case_state: CaseState, cause: Cause | None) -> None:
        """Clears the rings that the wearer has left for good, by what is known for sure of both sides."""
        for target in case_state.case.targets:
            for ring in reversed(case_state.case.rings):
                ring_state = case_state.rings[target.target_id, ring.radius_mm]
                if ring_state.open and self._has_left(case_state, target, ring, ring_state):
                    self._clear_ring(case_state, target, ring, self.state.now_ms, cause)
        self._settle_episode(case_state)

    def _has_left(self, case_state: CaseState, target: Target, ring: Ring, ring_state: RingState) -> bool:
        rules, now_ms = self.state.rules, self.state.now_ms
        margin_mm = rules.clear_margin_of(ring.radius_mm)
        fresh = False
        for wearer, device in pairs(self.state, case_state, target):
            until_ms = rings.known_until(wearer, device)
            if until_ms is None or not rings.is_fresh(until_ms, now_ms):
                continue
            fresh = True
            from_ms = until_ms - rules.clear_after_ms
            if from_ms < (ring_state.since_ms or 0):
                return False
            # The newest position first: it nearly always says no, and says it cheaply.
            for pieces in rings.assumed(wearer, device, until_ms, now_ms):
                for piece in pieces:
                    if target.shape.within(piece.start, piece.end, ring.radius_mm + margin_mm):
                        return False
            pieces_known = rings.joined(wearer, device, from_ms, until_ms)
            if not rings.clear_for(pieces_known, target.shape, ring, margin_mm, from_ms, until_ms):
                return False
        return fresh

    def _close(
        self, case_state: CaseState, targets: tuple[Target, ...], at_ms: int, only: list[Ring] | None = None
    ) -> None:
        """Clears open rings because the order no longer asks for them."""
        for target in targets:
            for ring in reversed(case_state.case.rings if only is None else only):
                if case_state.rings[target.target_id, ring.radius_mm].open:
                    self._clear_ring(case_state, target, ring, at_ms, None)

    def _clear_ring(
        self, case_state: CaseState, target: Target, ring: Ring, upto_ms: int, cause: Cause | None
    ) -> None:
        ring_state = case_state.rings[target.target_id, ring.radius_mm]
        account(self.state, case_state, target, ring, upto_ms)
        assert ring_state.since_ms is not None
        at_ms = ring_state.inside[-1][1] if ring_state.inside else min(upto_ms, self.state.now_ms)
        inside, min_mm = tuple(ring_state.inside), ring_state.least_mm
        ring_state.leave()
        self._alert(
            case_state,
            Kind.RING_CLEARED,
            demands.of_ring(ring.action, entered=False),
            at_ms,
            target=target,
            ring=ring,
            cause=cause,
            distance_mm=float(ring.radius_mm) if inside else None,
            inside=inside,
            min_mm=min_mm,
        )

    def _forget_old(self, device_id: str, track: Track, case_ids: list[str]) -> None:
        """Drops fixes that no late report can need any more; open rings account for them first."""
        horizon_ms = self.state.now_ms - WINDOW_MS
        if track.fixes[0].time_ms >= horizon_ms:
            return
        for case_id in case_ids:
            case_state = self.state.cases[case_id]
            for target in case_state.case.targets:
                for ring in case_state.case.rings:
                    if case_state.rings[target.target_id, ring.radius_mm].open:
                        account(self.state, case_state, target, ring, horizon_ms)
        track.forget_before(horizon_ms)

    # ── equipment ────────────────────────────────────────────────────────────────────────────────────────────────────

    def equipment(self, report: EquipmentReport) -> None:
        """What a device says about itself concerns each case in which it plays a part."""
        state = self.state
        heard = state.heard.setdefault(report.device_id, [])
        if report.report_id in heard:
            return  # sent again
        heard.append(report.report_id)
        del heard[:-REMEMBERED_REPORTS]
        kind, demand = demands.EQUIPMENT[report.event]
        at_ms = min(report.event_time_ms, state.now_ms)
        cause = Cause(report.device_id, report.report_id, report.received_wall_us)
        for case_id in tuple(state.cases_of.get(report.device_id, ())):
            case_state = state.cases[case_id]
            if not case_state.case.valid_from_ms <= state.now_ms:
                continue
            target = next((t for t in case_state.case.targets if report.device_id in t.device_ids), None)
            taken_back = demands.ENDS.get(report.event)
            if taken_back:
                case_state.raised.pop(event_key(taken_back, report.device_id), None)
            elif demand is Demand.RESPOND:
                case_state.raised[event_key(report.event, report.device_id)] = at_ms
            self._alert(case_state, kind, demand, at_ms, target=target, cause=cause)
            self._settle_episode(case_state)

    def _take_back(self, case_state: CaseState, keys: tuple[str, ...], at_ms: int) -> None:
        """Ends equipment events that the case no longer asks about."""
        for key in keys:
            event, _, device_id = key.partition(" ")
            del case_state.raised[key]
            target = next((t for t in case_state.case.targets if device_id in t.device_ids), None)
            self._alert(case_state, demands.EQUIPMENT[Equipment(event)][0], Demand.RECORD, at_ms, target=target)

    # ── alerts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _alert(
        self,
        case_state: CaseState,
        kind: Kind,
        demand: Demand,
        at_ms: int,
        *,
        target: Target | None = None,
        ring: Ring | None = None,
        cause: Cause | None = None,
        distance_mm: float | None = None,
        p: float | None = None,
        inside: tuple[tuple[int, int], ...] = (),
        min_mm: float | None = None,
    ) -> None:
        state, case = self.state, case_state.case
        ordinal = len(self.out)
        if demand > Demand.RECORD and not case_state.episode_id:
            case_state.episode_id = hash_id("episode", state.partition, self.sequence, ordinal)
            incident = state.incidents.get(case.wearer_id)
            if incident is None:
                incident = Incident(hash_id("incident", state.partition, self.sequence, ordinal))
                state.incidents[case.wearer_id] = incident
            incident.case_ids.append(case.case_id)
        open_incident = state.incidents.get(case.wearer_id)
        self.out.append(
            Alert(
                alert_id=hash_id("alert", state.partition, self.sequence, ordinal),
                sequence=self.sequence,
                ordinal=ordinal,
                kind=kind,
                demand=demand,
                order_id=case.order_id,
                case_id=case.case_id,
                episode_id=case_state.episode_id,
                incident_id=open_incident.incident_id if open_incident else "",
                wearer_id=case.wearer_id,
                target_id=target.target_id if target else "",
                ring_mm=ring.radius_mm if ring else 0,
                at_ms=at_ms,
                decided_at_ms=state.now_ms,
                late=state.now_ms - at_ms >= state.rules.late_after_ms,
                destinations=demands.destinations(case, target),
                incident_ends=False,
                cause=cause,
                distance_mm=distance_mm,
                probability=p,
                inside=inside,
                min_distance_mm=min_mm,
            )
        )

    def _settle_episode(self, case_state: CaseState) -> None:
        """Ends the episode when nothing of it is open, and the incident when that was the wearer's last."""
        if not case_state.episode_id or not case_state.quiet:
            return
        case_state.episode_id = ""
        wearer_id = case_state.case.wearer_id
        incident = self.state.incidents[wearer_id]
        incident.case_ids.remove(case_state.case.case_id)
        if incident.case_ids:
            return
        del self.state.incidents[wearer_id]
        # The alert that closed the last ring says so; there always is one, since only alerts change what is open.
        last = max(
            i for i, one in enumerate(self.out) if isinstance(one, Alert) and one.incident_id == incident.incident_id
        )
        ending = self.out[last]
        assert isinstance(ending, Alert)
        self.out[last] = replace(ending, incident_ends=True)
