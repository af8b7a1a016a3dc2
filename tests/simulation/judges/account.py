"""Judges that compare decisions with the truth: what reports prove is in an account (I9), and no all-clear rests on a jump (I10)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise, product

from services.common.messaging import flow
from services.geofence.domain.detectors import accounts
from services.geofence.domain.kinematics.rings import Stretch
from tandem.common.v1 import alert_pb2, log_pb2
from tests.simulation.actors.town import Device
from tests.simulation.jetstream.stream import Stored
from tests.simulation.judges.fold import FoldJudge
from tests.simulation.judges.judge import Case, Judge
from tests.simulation.kernel.world import START_NS

PROVES_M = 40.0
"""Distance from the protected home that proves presence, whatever the accuracy of a report, metres."""
JOINED_S = 150.0
"""Longest time between two reports that prove presence at the second, seconds: a single position sends nobody."""
DECIDED_WITHIN_S = 30.0
"""Maximum time without faults from a report that proves presence until an account has it, seconds."""
AMENDED_WITHIN_S = accounts.AMEND_AFTER_MS / 1_000 + DECIDED_WITHIN_S
"""The same bound for a report whose moment a cleared account covers, seconds: an amended account waits for more late reports. A device
that delivered what it had kept for half an hour proved a later departure, and its amendment was due in the second in which the judge
expected it (seed 2004)."""
SAME_VISIT_S = 120.0
"""How much later than a proof an entry of the same visit may be, seconds: a device's longest interval."""
NEAR_M = 50.0
"""Distance within a ring's edge at which the truth leaves no doubt, metres."""
HELD_S = 30.0
"""How long before an all-clear the wearer was within the ring, if the all-clear is to be wrong, seconds."""
BREACH_M = 100.0
"""Radius of the ring whose entry is a breach, metres. A wearer at the protected home is within it."""
_ENDS = (alert_pb2.RING_CLEARED,)
_AMENDS = (alert_pb2.ACCOUNT_AMENDED, alert_pb2.LATE_EVIDENCE)


def _elapsed_s(nanoseconds: int) -> float:
    return (nanoseconds - START_NS) / 1e9


def distance_m(device: Device, at_s: float) -> float:
    """Distance from the protected home, metres."""
    return math.hypot(*device.journey.at(at_s))


def _is_honest(device: Device) -> bool:
    return not device.lies_s and not device.clock_ahead_s


@dataclass(slots=True)
class _Accounts:
    """What alerts say about a wearer and the ring of a breach round the protected home."""

    entered_s: list[float] = field(default_factory=list)
    cleared_s: list[float] = field(default_factory=list)
    cleared_upto_s: float = 0.0
    """When the newest clearing was decided: cleared accounts cover no later moment."""
    amended_s: list[float] = field(default_factory=list)

    def has(self, at_s: float) -> bool:
        """Whether some account says that the wearer was within the ring at a time."""
        before = max((entered_s for entered_s in self.entered_s if entered_s <= at_s + SAME_VISIT_S), default=None)
        is_open = before is not None and not any(before < cleared_s < at_s - 1 for cleared_s in self.cleared_s)
        return is_open or any(amended_s >= at_s for amended_s in self.amended_s)


class AccountJudge(Judge):
    """I9: if two reports in a row prove that the wearer was at the protected home, an account has the second of them.

    Kept reports that come after the entry may prove an earlier one, by minutes if the tag had no network (seeds 38 and 2176). The open
    account has it, and it is published when the ring is cleared. So the judge also reads the accounts in the state of the fold.
    """

    name = "I9"

    def __init__(self, case: Case, folded: FoldJudge) -> None:
        super().__init__(case)
        self._folded = folded
        self._proofs: dict[str, dict[float, tuple[float, int]]] = {}
        """By wearer and time of the fix: when the report was stored, seconds, and its sequence."""
        self._accounts: dict[str, _Accounts] = {}
        self._case_s: dict[str, float] = {}
        self._settled: set[tuple[str, float]] = set()
        self._pairs: dict[str, list[tuple[float, float]]] = {}
        """Times of two reports in a row of each wearer that prove presence and aren't settled. Left out after a change."""

    def stored(self, stream: str, message: Stored) -> None:
        now_s = self.world.elapsed_s
        if stream == flow.ALERTS.name:
            self._note(alert_pb2.Alert.FromString(message.data))
        elif stream == flow.log_stream(0):
            entry = log_pb2.LogEntry.FromString(message.data)
            if message.subject.endswith(".case"):
                wearer_id = entry.case.order_id.replace("order-", "wearer-")
                self._case_s.setdefault(wearer_id, now_s)
                self._pairs.pop(wearer_id, None)
            for device_id, fix_ms in zip(entry.positions.device_id, entry.positions.fix_time_ms, strict=True):
                device, fix_s = self.case.town.devices[device_id], _elapsed_s(fix_ms * 1_000_000)
                if device_id.startswith("tag-") and _is_honest(device) and distance_m(device, fix_s) < PROVES_M:
                    wearer_id = device_id.replace("tag-", "wearer-")
                    self._proofs.setdefault(wearer_id, {}).setdefault(fix_s, (now_s, message.sequence))
                    self._pairs.pop(wearer_id, None)

    def _note(self, alert: alert_pb2.Alert) -> None:
        known = self._accounts.setdefault(alert.wearer_id, _Accounts())
        if not alert.target_id.startswith("home-") or (alert.ring_m and alert.ring_m > BREACH_M):
            return
        at_s = _elapsed_s(alert.at.ToNanoseconds())
        if alert.kind == alert_pb2.RING_ENTERED:
            known.entered_s.append(at_s)
        elif alert.kind in _ENDS:
            known.cleared_s.append(at_s)
            known.cleared_upto_s = max(known.cleared_upto_s, _elapsed_s(alert.decided_at.ToNanoseconds()))
        elif alert.kind in _AMENDS:
            known.amended_s.append(_elapsed_s(alert.decided_at.ToNanoseconds()))

    def torn(self, stream: str, first_lost: int) -> None:
        if stream == flow.log_stream(0):
            for wearer_id, proofs in self._proofs.items():
                self._proofs[wearer_id] = {at_s: found for at_s, found in proofs.items() if found[1] < first_lost}
            self._pairs.clear()

    def each_second(self) -> None:
        if self.case.faults.calm_s > 2 * DECIDED_WITHIN_S:
            for wearer_id, at_s in list(self._due()):
                self._settled.add((wearer_id, at_s))
                self._pairs.pop(wearer_id, None)
                if not (self._accounts[wearer_id].has(at_s) or self._account_covers(wearer_id, at_s)):
                    self.fail(f"{wearer_id} was at the home at {at_s:.1f} s by two reports, and no account says so")
                    return

    def _due(self) -> Iterator[tuple[str, float]]:
        """Wearers and times that an account must have by now, each once."""
        for wearer_id in self._proofs:
            if wearer_id not in self._pairs:
                self._pairs[wearer_id] = self._unsettled(wearer_id)
            upto_s = self._accounts.setdefault(wearer_id, _Accounts()).cleared_upto_s
            for before_s, at_s in self._pairs[wearer_id]:
                stored_s = self._stored_s(wearer_id, before_s, at_s)
                ends_s = self.case.town.households[int(wearer_id.partition("-")[2])].order_ends_s
                due_s = stored_s + (AMENDED_WITHIN_S if at_s <= upto_s else DECIDED_WITHIN_S)
                if due_s < min(self.world.elapsed_s, ends_s):
                    yield wearer_id, at_s

    def _unsettled(self, wearer_id: str) -> list[tuple[float, float]]:
        case_s = self._case_s.get(wearer_id, math.inf)
        return [
            (before_s, at_s)
            for before_s, at_s in pairwise(sorted(self._proofs[wearer_id]))
            if before_s > case_s and at_s - before_s < JOINED_S and (wearer_id, at_s) not in self._settled
        ]

    def _account_covers(self, wearer_id: str, at_s: float) -> bool:
        """Whether an entry was published, and the open account or a cleared one of its ring covers a time."""
        at_ms = START_NS // 1_000_000 + at_s * 1_000
        inside = self._inside(wearer_id) if self._accounts[wearer_id].entered_s else ()
        return any(from_ms <= at_ms <= until_ms for from_ms, until_ms in inside)

    def _inside(self, wearer_id: str) -> Iterator[Stretch]:
        """When the wearer was within the ring of a breach round the home, by the accounts of the fold."""
        state = self._folded.state
        for case_state in state.cases.values():
            case = case_state.case
            for target, ring in product(case.targets, case.rings):
                is_home = case.wearer_id == wearer_id and target.target_id.startswith("home-")
                if is_home and ring.radius_mm == BREACH_M * 1_000:
                    ring_state = case_state.ring(target, ring)
                    for cleared in ring_state.closed:
                        yield from cleared.inside
                    if ring_state.open:
                        account = accounts.account(state, case_state, target, ring=ring, upto_ms=state.now_ms)
                        yield from account.inside

    def _stored_s(self, wearer_id: str, before_s: float, at_s: float) -> float:
        """When the log had the case and both reports, seconds."""
        proofs = self._proofs[wearer_id]
        return max(proofs[before_s][0], proofs[at_s][0], self._case_s[wearer_id])


class ClearingJudge(Judge):
    """I10: no ring round the protected home is cleared while the wearer is within it and the tag reports from 60 km away."""

    name = "I10"

    def stored(self, stream: str, message: Stored) -> None:
        if stream != flow.ALERTS.name:
            return
        alert = alert_pb2.Alert.FromString(message.data)
        if alert.kind not in _ENDS or not alert.target_id.startswith("home-"):
            return
        tag = self.case.town.devices[alert.wearer_id.replace("wearer-", "tag-")]
        at_s = _elapsed_s(alert.at.ToNanoseconds())
        decided_s = _elapsed_s(alert.decided_at.ToNanoseconds())
        lies = any(begin <= at_s < end for begin, end in tag.lies_s)
        household = self.case.town.households[int(alert.wearer_id.partition("-")[2])]
        if at_s >= household.order_ends_s - 1 or decided_s >= household.order_ends_s - 1:
            return  # the end of the order clears its rings
        moments = (at_s - HELD_S, at_s, (at_s + decided_s) / 2, decided_s)
        if lies and not tag.clock_ahead_s and all(distance_m(tag, s) < alert.ring_m - NEAR_M for s in moments):
            self.fail(
                f"{alert.alert_id} clears {alert.target_id} by a jump of 60 km, and {alert.wearer_id} is still there"
            )
