"""Judges of reports: each acknowledged one is in the log (I1), and live ones are answered soon (I11)."""

from __future__ import annotations

import math
from itertools import islice

from services.common.messaging import flow
from tandem.common.v1 import log_pb2
from tests.simulation.actors.head_end import ReportKey
from tests.simulation.jetstream.stream import Stored
from tests.simulation.judges.judge import Case, Judge
from tests.simulation.mesh.processes import BACKFILL_PER_S

ANSWERED_WITHIN_S = 60.0
"""Maximum time without faults until a report of a device with network is answered, seconds."""
LIVE_WITHIN_S, SETTLED_S = 15.0, 30.0
"""Maximum time until a live report is answered, and how long the mesh must be calm before it counts, seconds."""


class ReportsJudge(Judge):
    """I1, and that reports are answered at all once nothing is disturbed (I7)."""

    name = "I1"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._logged: dict[ReportKey, int] = {}
        self._excused: set[ReportKey] = set()
        """Reports that a torn tail has lost after they were acknowledged."""
        self._checked = 0

    def stored(self, stream: str, message: Stored) -> None:
        if stream != flow.log_stream(0) or not message.subject.endswith(".report"):
            return
        entry = log_pb2.LogEntry.FromString(message.data)
        for device_id, report_id in zip(entry.positions.device_id, entry.positions.report_id, strict=True):
            self._logged.setdefault(ReportKey(device_id, report_id), message.sequence)
        if entry.HasField("equipment"):
            self._logged.setdefault(ReportKey(entry.equipment.device_id, entry.equipment.report_id), message.sequence)

    def torn(self, stream: str, first_lost: int) -> None:
        if stream == flow.log_stream(0):
            lost = {key for key, sequence in self._logged.items() if sequence >= first_lost}
            self._excused |= lost
            for key in lost:
                del self._logged[key]

    def each_second(self) -> None:
        accepted = self.case.head_end.accepted
        if len(accepted) == self._checked:
            return
        new = list(islice(reversed(accepted), len(accepted) - self._checked))
        for key in reversed(new):
            if key not in self._logged and key not in self._excused:
                self.fail(f"report {key.report_id} of {key.device_id} was acknowledged and isn't in the log")
        self._checked = len(accepted)

    def finish(self) -> None:
        """A device that came back near the end may still be delivering what it had kept: ingest accepts kept reports at a limited rate
        (seed 6 with a defect of deadlines: 1,750 kept reports, 30 s before the end)."""
        now_s, head_end = self.world.elapsed_s, self.case.head_end
        for key, since_s in head_end.unanswered():
            device = self.case.town.devices[key.device_id]
            online_s = max(since_s, device.reachable_since_s(now_s))
            if now_s - online_s <= ANSWERED_WITHIN_S or device.is_offline(now_s) or device.is_dead(now_s):
                continue
            backlog = head_end.waiting + sum(answered_s >= online_s for answered_s in head_end.accepted.values())
            if now_s - online_s > ANSWERED_WITHIN_S + backlog / BACKFILL_PER_S:
                self.fail(
                    f"I7: report {key.report_id} of {key.device_id} has had no answer for {now_s - since_s:.0f} s"
                )
                return


class OverloadJudge(Judge):
    """I11: a live report is answered soon, also while a device delivers thousands of kept ones.

    The time without an answer counts from when its device last came back, because a live report waits with a device that loses its
    network before the report is sent (seed 2517).
    """

    name = "I11"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._known_s: dict[str, float] = {}
        """When ingest first accepted a report of each device: until then it may not know the device, seconds."""

    def each_second(self) -> None:
        for device_id in self.case.town.devices:
            for heard_s in self.case.head_end.heard_s(device_id):
                self._known_s.setdefault(device_id, heard_s)
        head_end, now_s = self.case.mesh.processes["head-end"], self.world.elapsed_s
        if min(self.case.faults.calm_s, now_s - head_end.started_s) < SETTLED_S or not head_end.is_up:
            return
        for key, since_s in self.case.head_end.unanswered_live():
            device = self.case.town.devices[key.device_id]
            is_heard = not any(map(device.is_offline, (now_s, since_s))) and not device.is_dead(now_s)
            is_known = since_s > self._known_s.get(key.device_id, math.inf)
            waits_s = now_s - max(since_s, device.reachable_since_s(now_s))
            if is_heard and is_known and waits_s > LIVE_WITHIN_S:
                self.fail(f"live report {key.report_id} of {key.device_id} has had no answer for {waits_s:.0f} s")
                return
