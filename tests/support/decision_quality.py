"""Test support for the decision-quality study: short plays, and stand-ins for the fold that demand and request at fixed moments."""

from __future__ import annotations

from collections.abc import Mapping

from bench.decision.placement import Play, Spot, moved
from services.geofence.domain.alerts import Alert, Output, SensingRequest
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Body, Case, Demand, Entry
from services.geofence.domain.state import Agenda, Due, State

HOME = Spot(0, 375_000_000, 1_270_000_000)


def play(*north_m: tuple[int, int], is_place: bool = True) -> Play:
    """A play of a wearer by pairs of time, s, and distance north of the home, m."""
    way = tuple(moved(HOME, north, 0)._replace(at_ms=at_s * 1000) for at_s, north in north_m)
    return Play("p", "beside-0", "w", way, (HOME, HOME._replace(at_ms=way[-1].at_ms)), is_place)


def alert(kind: AlertKind, demand: Demand, at_ms: int) -> Alert:
    """An alert of the play's case, of the ring of 100 m."""
    return Alert(
        alert_id=f"{kind.value}-{at_ms}",
        sequence=1,
        ordinal=0,
        kind=kind,
        demand=demand,
        order_id="order",
        case_id="case",
        episode_id="",
        incident_id=f"{at_ms}",
        wearer_id="w",
        target_id="p",
        ring_mm=100_000,
        at_ms=at_ms,
        decided_at_ms=at_ms,
        late=False,
        destinations=(),
        incident_opens=False,
        incident_ends=False,
        cause=None,
        cause_of_wearer=False,
        distance_mm=None,
        probability=None,
        fold_version=1,
        rules_id="",
    )


def interval(at_s: int, interval_s: int, until_s: int) -> SensingRequest:
    """A request for an interval of the tag."""
    return _request(at_s, interval_s, until_s)


def position_now(at_s: int) -> SensingRequest:
    """A request for a position of the tag."""
    return _request(at_s, None, at_s + 60)


def _request(at_s: int, interval_s: int | None, until_s: int) -> SensingRequest:
    return SensingRequest(
        request_id=f"{at_s} {interval_s}",
        sequence=1,
        ordinal=0,
        device_id="tag",
        interval_s=interval_s,
        decided_at_ms=at_s * 1000,
        until_ms=until_s * 1000,
        fold_version=1,
    )


class ScriptedFold:
    """A stand-in for the fold: it gives each output at a fixed moment, whatever is reported."""

    def __init__(self, outputs: Mapping[int, Output]) -> None:
        self.bodies: list[Body] = []
        """Bodies of all entries that were folded."""
        self._outputs = {at_s * 1000: output for at_s, output in outputs.items()}

    def step(self, state: State, entry: Entry) -> list[Output]:
        """Gives what is due at the entry's stamp."""
        self.bodies.append(entry.body)
        if isinstance(entry.body, Case):
            state.due = Agenda(Due(at_ms, "case", False) for at_ms in self._outputs)
        state.sequence = entry.sequence
        given: list[Output] = []
        while state.due.next_ms is not None and state.due.next_ms <= entry.stamp_ms:
            given.append(self._outputs[state.due.pop().at_ms])
        return given
