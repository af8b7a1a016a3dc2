"""Judges of orders: their cases are in the log (I7), never go back (I5), and nobody is alarmed by an order that has ended (I8)."""

from __future__ import annotations

from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2
from tests.simulation.actors.agencies import AcceptedOrder, Agencies
from tests.simulation.jetstream.stream import Stored
from tests.simulation.judges.judge import Case, Judge

CASE_WITHIN_S = 30.0
"""Maximum time without faults until the case of an accepted order is in the log as it was put last, seconds."""


class RecordsJudge(Judge):
    """Each order that the registry has accepted and that matches is a case of the log, as it was put last (I7)."""

    name = "I7"

    def __init__(self, case: Case, agencies: Agencies) -> None:
        super().__init__(case)
        self._agencies = agencies
        self._logged: dict[str, tuple[int, log_pb2.CaseSnapshot]] = {}
        """Newest case of each order, with its sequence in the log."""
        self._logged_s: dict[str, float] = {}
        """When the log got the newest case of each order, seconds."""
        self._is_torn = False

    def stored(self, stream: str, message: Stored) -> None:
        if stream == flow.log_stream(0) and message.subject.endswith(".case"):
            snapshot = log_pb2.LogEntry.FromString(message.data).case
            _, before = self._logged.get(snapshot.order_id, (0, snapshot))
            if snapshot.version < before.version and not self._is_torn:
                self.fail(f"I5: the case of {snapshot.order_id} went back from {before.version} to {snapshot.version}")
            if snapshot.version >= before.version:
                self._logged[snapshot.order_id] = (message.sequence, snapshot)
                self._logged_s[snapshot.order_id] = self.world.elapsed_s
        elif stream == flow.ALERTS.name:
            self._check_alert(alert_pb2.Alert.FromString(message.data))

    def _check_alert(self, alert: alert_pb2.Alert) -> None:
        sequence, snapshot = self._logged.get(alert.order_id, (0, log_pb2.CaseSnapshot()))
        at_ms = alert.at.ToMilliseconds()
        is_over = bool(sequence) and alert.sequence > sequence and at_ms > snapshot.valid_until_ms
        if is_over and alert.demand > geometry_pb2.RECORD:
            self.fail(
                f"I8: {alert.alert_id} alarms people {(at_ms - snapshot.valid_until_ms) / 1000:.0f} s after {alert.order_id} ended"
            )

    def torn(self, stream: str, first_lost: int) -> None:
        if stream == flow.log_stream(0):
            self._is_torn = True
            self._logged = {id_: logged for id_, logged in self._logged.items() if logged[0] < first_lost}

    def each_second(self) -> None:
        """A newer version may be in the log before the agency has the answer that it was accepted, so a fresh case isn't compared."""
        now_s, calm_s = self.world.elapsed_s, self.case.faults.calm_s
        for order_id, order in self._agencies.orders.items():
            since_s = max(order.accepted_s, self._logged_s.get(order_id, 0.0))
            if min(now_s - since_s, calm_s) > CASE_WITHIN_S and not self._is_logged(order_id, order):
                self.fail(
                    f"version {order.version} of {order_id} was accepted {now_s - order.accepted_s:.0f} s ago, and the log "
                    "doesn't have it"
                )
                return

    def _is_logged(self, order_id: str, order: AcceptedOrder) -> bool:
        if order_id not in self._logged:
            return False
        snapshot = self._logged[order_id][1]
        places = sorted(place.place_id for place in snapshot.places)
        return snapshot.valid_until_ms == order.valid_until_s * 1_000 and places == sorted(order.place_ids)
