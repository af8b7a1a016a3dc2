"""The spans of an incident, from what the streams say of it. Pure.

    incident opened ─┬─ report received ── evaluated ── alert ─┬─ police offered ─┬─ police accepted
                     │                                         └─ warning offered └─ police on the way ...
                     ├─ report received ── evaluated ── alert
                     └─ record read
    order in force (a trace of its own, which the first one is linked with)

Each span begins where the one before it ended, so their lengths add up. Clocks of different hosts differ: a span that would end
before it began has no length, and says by how much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.common.observability import trace_ids
from services.registry.traces.domain.facts import AlertFact, Premise, StepFact, Use

REVIEWER, OPERATOR = "reviewer", "operator"
EVERYBODY = frozenset({"probation", "police", REVIEWER, OPERATOR})
"""Who looks at a trace: an agency's desk by its leg, and those who look at all of it."""
_ALL_OF_IT = frozenset({REVIEWER, OPERATOR})

SAYS = {
    "NOTIFIED": "told",
    "OFFERED": "offered",
    "ESCALATED": "escalated",
    "ACKNOWLEDGED": "accepted",
    "STOOD_DOWN": "stood down",
    "DISPATCHED": "dispatched",
    "EN_ROUTE": "on the way",
    "ON_SCENE": "on scene",
    "APPREHENDED": "has the wearer",
    "CLOSED": "closed",
    "NOBODY_AVAILABLE": "nobody available",
    "REJECTED": "rejected",
}
"""What a step is called, by the state that it leads to; a state that isn't here by its own name."""
_DELIVERED = "delivered"
"""What it is called when the gateway has taken a warning."""
_OFFERS = frozenset({"NOTIFIED", "OFFERED"})
_AMENDED = "ACCOUNT_AMENDED"
_OVER = "STOOD_DOWN"
_NOTED = "noted"
"""What a step is called that says nothing to others: what it was about stays with the leg."""
_MOVES = frozenset({"DISPATCHED", "EN_ROUTE", "ON_SCENE", "APPREHENDED"})
"""How long the police are on their way tells how far the protected person is, so each agency's moves are its own desk's."""
_OF_HER = frozenset({"police", REVIEWER})
"""Who learns from a trace that a protected person wasn't reached, or is under duress: those who do from the leg itself."""


@dataclass(frozen=True, slots=True)
class SpanLink:
    """Another trace that has to do with a span."""

    trace_id: str
    span_id: str
    what: str


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time. Moments are wall clock, microseconds since 1970 UTC."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    service: str
    name: str
    start_us: int
    end_us: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    links: tuple[SpanLink, ...] = ()
    shows: frozenset[str] = EVERYBODY
    """To whom."""


def spans_of(
    incident_id: str,
    alerts: Iterable[AlertFact],
    steps: Iterable[StepFact],
    uses: Iterable[Use] = (),
    case_versions: Mapping[str, Sequence[Premise]] | None = None,
) -> list[Span]:
    """All spans of an incident, root first, then by their beginning; none where no alert of it is known.

    `case_versions` are the versions of each case. What refers to an alert that isn't known hangs from the root.
    """
    decided = sorted(alerts, key=lambda alert: alert.place)
    if not decided:
        return []
    known = _Known(incident_id, decided)
    decisions = known.decisions()  # the root is as long as the first of them
    root, *rests_on = known.root(case_versions or {})
    others = [*rests_on, *decisions, *known.steps(steps), *known.uses(uses)]
    return [root, *sorted(others, key=lambda one: (one.start_us, one.end_us))]


def shown_to(viewer: str, spans: Iterable[Span]) -> list[Span]:
    """What a viewer may see of a trace. What hangs from something hidden hangs from the root instead."""
    visible = [span for span in spans if viewer in span.shows]
    ids = {one.span_id for one in visible}
    roots = {one.trace_id: one.span_id for one in visible if not one.parent_id}
    return [
        one if not one.parent_id or one.parent_id in ids else replace(one, parent_id=roots[one.trace_id])
        for one in visible
    ]


class _Known:
    def __init__(self, incident_id: str, alerts: Sequence[AlertFact]) -> None:
        self._incident_id, self._alerts = incident_id, alerts
        self._trace_id = trace_ids.trace_id_of(incident_id)
        self._root_id = trace_ids.span_id_of(incident_id)
        self._ended_us: dict[str, int] = {}
        """By span: when it ended, once it is made."""

    def _span(
        self,
        what: tuple[str | int, ...],
        parent_id: str,
        service: str,
        name: str,
        times_us: tuple[int, int],
        attributes: Mapping[str, str],
        shows: frozenset[str] = EVERYBODY,
        links: tuple[SpanLink, ...] = (),
    ) -> Span:
        span_id = trace_ids.span_id_of(self._incident_id, *what)
        start_us, end_us = times_us
        told = {key: value for key, value in attributes.items() if value}
        if end_us < start_us:
            told["clock_behind_us"] = str(start_us - end_us)
            end_us = start_us
        self._ended_us[span_id] = end_us
        return Span(self._trace_id, span_id, parent_id, service, name, start_us, end_us, told, links, shows)

    def root(self, case_versions: Mapping[str, Sequence[Premise]]) -> list[Span]:
        """The span that all others hang from, as long as those of the first decision together; and the orders that it rests on."""
        first = self._alerts[0]
        start_us = first.entry_us if first.received_us is None else first.received_us
        rests_on = [span for alert in self._alerts if (span := _premise(alert, case_versions))]
        rests_on = list({span.span_id: span for span in rests_on}.values())
        links = tuple(SpanLink(span.trace_id, span.span_id, span.name) for span in rests_on)
        times_us = (start_us, self._ended_us[self._alert_span_id(first)])
        about = {"incident_id": self._incident_id, "exercise": first.exercise}
        root = self._span((), "", "geofence", "incident opened", times_us, about, links=links)
        return [root, *rests_on]

    def decisions(self) -> list[Span]:
        """From each report to its alerts."""
        by_entry: dict[tuple[int, int], list[AlertFact]] = {}
        for alert in self._alerts:
            by_entry.setdefault((alert.partition, alert.sequence), []).append(alert)
        return [span for alerts in by_entry.values() for span in self._decision(alerts)]

    def _decision(self, alerts: Sequence[AlertFact]) -> list[Span]:
        first = alerts[0]
        entry = f"LOG_{first.partition}#{first.sequence}"
        shows = _ALL_OF_IT.union(*(alert.legs for alert in alerts))
        spans, parent_id, since_us = [], self._root_id, first.entry_us
        if first.received_us is not None:
            links = (SpanLink(*sent, "sent in"),) if (sent := trace_ids.parsed(first.sender)) else ()
            about = {"stored": entry, "reports_together": str(first.together)}
            times_us = (first.received_us, first.entry_us)
            what = ("received", first.partition, first.sequence)
            spans.append(self._span(what, parent_id, "ingest", "report received", times_us, about, shows, links))
            parent_id, since_us = spans[-1].span_id, spans[-1].end_us
        decided_us = min((alert.decided_us for alert in alerts if alert.decided_us is not None), default=None)
        if decided_us is not None:
            what = ("evaluated", first.partition, first.sequence)
            times_us = (since_us, decided_us)
            spans.append(self._span(what, parent_id, "geofence", "evaluated", times_us, {"read": entry}, shows))
            parent_id, since_us = spans[-1].span_id, spans[-1].end_us
        for alert in alerts:
            about = {
                "alert_id": alert.alert_id,
                "kind": alert.alert_kind,
                "demand": alert.demand,
                "stored": f"ALERTS#{alert.stored}",
                "ends": "incident" if alert.ends else "",
            }
            times_us = (since_us, alert.published_us)
            legs = _ALL_OF_IT.union(alert.legs)
            spans.append(self._span(("alert", alert.alert_id), parent_id, "geofence", "alert", times_us, about, legs))
        return spans

    def steps(self, steps: Iterable[StepFact]) -> list[Span]:
        """What each leg did, one step after the other."""
        by_assignment: dict[str, list[StepFact]] = {}
        for step in steps:
            by_assignment.setdefault(step.assignment_id, []).append(step)
        spans = []
        for mine in by_assignment.values():
            offer_id, since_us = "", 0
            before: StepFact | None = None
            for step in sorted(mine, key=lambda one: one.number):
                says, shows = _says(step, before)
                offers = step.state in _OFFERS and says == SAYS[step.state]
                parent_id = offer_id
                if offers or not offer_id or says == SAYS[_OVER]:
                    parent_id, told_us = self._told_by(step)
                    since_us = max(since_us, told_us)
                span, before = self._step(step, says, shows, parent_id, since_us), step
                if offers or not offer_id:
                    offer_id = span.span_id
                since_us = span.end_us
                spans.append(span)
        return spans

    def _told_by(self, step: StepFact) -> tuple[str, int]:
        """The alert that led to a step, and when it was durable: of the report that the offer names, else the last that was there.

        What ends an incident sends nobody anywhere, and the step that follows still names the report of its offer. An amended account
        leads to no step.
        """
        over = step.state == _OVER
        leading = [alert for alert in self._alerts if alert.alert_kind != _AMENDED]
        mine = [alert for alert in leading if over or step.leg in alert.legs]
        same = [
            alert for alert in mine if not over and step.cause_us is not None and alert.received_us == step.cause_us
        ]
        before = [alert for alert in mine if alert.published_us // 1000 <= step.done_us // 1000]
        if not (same or before):
            return self._root_id, self._ended_us[self._root_id]
        alert = same[0] if same else before[-1]
        span_id = self._alert_span_id(alert)
        return span_id, self._ended_us[span_id]

    def _alert_span_id(self, alert: AlertFact) -> str:
        return trace_ids.span_id_of(self._incident_id, "alert", alert.alert_id)

    def _step(self, step: StepFact, says: str, shows: frozenset[str], parent_id: str, since_us: int) -> Span:
        about = {
            "assignment_id": step.assignment_id,
            "stored": f"INCIDENTS#{step.stored}",
            "told_others_us": str(step.published_us),
            "escalation_reason": step.escalation_reason,
            "escalation_level": step.level,
        }
        what = ("step", step.assignment_id, step.number)
        name = f"{step.leg} {says}"
        return self._span(what, parent_id, f"dispatch-{step.leg}", name, (since_us, step.done_us), about, shows)

    def uses(self, uses: Iterable[Use]) -> list[Span]:
        """Who saw personal data or a position for the sake of the incident; the ledger is what proves it."""
        spans = []
        for use in uses:
            about = {
                "deed": use.deed,
                "who": use.who,
                "legal_basis": use.legal_basis,
                "purpose": use.purpose,
                "record_kind": use.record_kind,
                "stored": f"ledger#{use.sequence}",
            }
            what, times_us = ("use", use.sequence), (use.at_us, use.at_us)
            name = f"ledger: {use.deed.lower().replace('_', ' ')}"
            spans.append(self._span(what, self._root_id, "registry", name, times_us, about, frozenset({REVIEWER})))
        return spans


def _says(step: StepFact, before: StepFact | None) -> tuple[str, frozenset[str]]:
    """What a step is called and to whom it shows, by what it changed in its assignment."""
    own_desk = _ALL_OF_IT | {step.leg}
    if before and step.flag != before.flag:
        return step.flag.lower().replace("_", " ") or _NOTED, _OF_HER
    if before and step.absent != before.absent:
        news = sorted(set(step.absent) - set(before.absent))
        back = sorted(set(before.absent) - set(step.absent))
        return ", ".join([*(f"misses {leg}" for leg in news), *(f"sees {leg} again" for leg in back)]), own_desk
    if before and before.same_as(step):
        return _NOTED, own_desk
    if _is_receipt(step, before):
        return "received by the desk", EVERYBODY
    if step.leg == "warning" and step.state == "ACKNOWLEDGED":
        return _DELIVERED, EVERYBODY
    says = SAYS.get(step.state, step.state.lower().replace("_", " "))
    return says, EVERYBODY if step.state not in _MOVES else own_desk


def _is_receipt(step: StepFact, before: StepFact | None) -> bool:
    """Whether a step says that the desk's machine has an offer.

    An assignment stays received while it is escalated to the same desk, so a step that changes its state or its offer isn't the
    receipt: it is the escalation or the offer.
    """
    if not step.received:
        return False
    if before is None:
        return step.state in _OFFERS
    return not before.received and (before.state, before.offer) == (step.state, step.offer)


def _premise(alert: AlertFact, case_versions: Mapping[str, Sequence[Premise]]) -> Span | None:
    """How the version of the case that an alert was decided on came into the log: a trace of its own, since it may be months old."""
    before = [
        case_version for case_version in case_versions.get(alert.case_id, ()) if case_version.sequence < alert.sequence
    ]
    if not before:
        return None
    one = max(before, key=lambda premise: premise.sequence)
    about = {"case_id": one.case_id, "version": str(one.version), "stored": f"LOG_{alert.partition}#{one.sequence}"}
    return Span(
        trace_ids.trace_id_of(f"{one.case_id}:{one.version}"),
        trace_ids.span_id_of(f"{one.case_id}:{one.version}"),
        "",
        "registry",
        "order in force",
        min(one.made_us, one.stored_us),
        one.stored_us,
        about,
    )
