"""Build the spans of an incident from the facts that the streams give about it. Pure.

    incident opened ─┬─ report received ── evaluated ── alert ─┬─ police offered ─┬─ police accepted
                     │                                         └─ warning offered └─ police on the way ...
                     ├─ report received ── evaluated ── alert
                     └─ record read
    order in force (a separate trace, linked from the span "incident opened")

Each span starts when the previous one ended, so their lengths add up. Clocks of different hosts differ: a span that would end
before its start gets length 0, and its attribute `clock_behind_us` states the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.common.observability.spans import parsed, span_id_of, trace_id_of
from services.registry.traces.domain.facts import AlertFact, CaseVersion, DataUse, StepFact

REVIEWER, OPERATOR = "reviewer", "operator"
EVERYBODY = frozenset({"probation", "police", REVIEWER, OPERATOR})
"""Viewers of a trace: the desk of each agency, named by its leg, the reviewers, and the operators."""
SEE_ALL = frozenset({REVIEWER, OPERATOR})
"""Viewers who see the steps of each desk."""

STEP_NAME_OF_STATE = {
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
"""Name of a step by the state that it leads to. Any other state is shown by its own name."""
_DELIVERED = "delivered"
"""Name of the step when a gateway has accepted a warning."""
OFFERS = frozenset({"NOTIFIED", "OFFERED"})
"""States that an alert leads to."""
WARNING = "warning"
"""Name of the leg that warns protected persons."""
_AMENDED = "ACCOUNT_AMENDED"
_OVER = "STOOD_DOWN"
_NOTED = "noted"
"""Name of a step that has no meaning for other legs; its content stays within the leg."""
MOVES = frozenset({"DISPATCHED", "EN_ROUTE", "ON_SCENE", "APPREHENDED"})
"""States that the other agency's desk doesn't see: the police's travel time reveals how far away the protected person is."""
SEE_PERSON_FLAG = frozenset({"police", REVIEWER})
"""Viewers who see that a protected person wasn't reached or is under duress. The warning leg shows this to the same viewers."""


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A link from a span to a related trace."""

    trace_id: str
    span_id: str
    what: str


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """A span of a trace. Times are wall time, microseconds since 1970 UTC."""

    trace_id: str
    span_id: str
    parent_id: str
    """Id of the parent span; empty for a root."""
    service: str
    name: str
    start_us: int
    end_us: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    links: tuple[SpanLink, ...] = ()
    shows: frozenset[str] = EVERYBODY
    """Viewers who may see the span."""


def spans_of(
    incident_id: str,
    alerts: Iterable[AlertFact],
    steps: Iterable[StepFact],
    *,
    uses: Iterable[DataUse] = (),
    case_versions: Mapping[str, Sequence[CaseVersion]] | None = None,
) -> list[TraceSpan]:
    """All spans of an incident: the root first, the others by start. Empty if no alert of the incident is known.

    `case_versions` has the versions of each case by case id. A step whose alert is unknown becomes a child of the root.
    """
    decided = sorted(alerts, key=lambda alert: alert.log_position)
    if not decided:
        return []
    builder = _SpanBuilder(incident_id, decided)
    decisions = builder.decisions()  # before root(), which needs the end of the first decision
    root, *orders = builder.root(case_versions or {})
    others = [*orders, *decisions, *builder.steps(steps), *builder.uses(uses)]
    return [root, *sorted(others, key=lambda span: (span.start_us, span.end_us))]


def shown_to(viewer: str, spans: Iterable[TraceSpan]) -> list[TraceSpan]:
    """The spans of a trace that a viewer may see. A span with a hidden parent becomes a child of the root."""
    visible = [span for span in spans if viewer in span.shows]
    ids = {span.span_id for span in visible}
    roots = {span.trace_id: span.span_id for span in visible if not span.parent_id}
    return [
        span if not span.parent_id or span.parent_id in ids else replace(span, parent_id=roots[span.trace_id])
        for span in visible
    ]


class _SpanBuilder:
    """Builds the spans of one incident and remembers when each one ended."""

    def __init__(self, incident_id: str, alerts: Sequence[AlertFact]) -> None:
        self._incident_id, self._alerts = incident_id, alerts
        self._trace_id = trace_id_of(incident_id)
        self._root_id = span_id_of(incident_id)
        self._ended_us: dict[str, int] = {}
        """End of each built span by span id."""

    def _span(
        self,
        what: tuple[str | int, ...],
        parent_id: str,
        service: str,
        *,
        name: str,
        times_us: tuple[int, int],
        attributes: Mapping[str, str],
        shows: frozenset[str] = EVERYBODY,
        links: tuple[SpanLink, ...] = (),
    ) -> TraceSpan:
        span_id = span_id_of(self._incident_id, *what)
        start_us, end_us = times_us
        stated = {key: value for key, value in attributes.items() if value}
        if end_us < start_us:
            stated["clock_behind_us"] = str(start_us - end_us)
            end_us = start_us
        self._ended_us[span_id] = end_us
        return TraceSpan(
            trace_id=self._trace_id,
            span_id=span_id,
            parent_id=parent_id,
            service=service,
            name=name,
            start_us=start_us,
            end_us=end_us,
            attributes=stated,
            links=links,
            shows=shows,
        )

    def root(self, case_versions: Mapping[str, Sequence[CaseVersion]]) -> list[TraceSpan]:
        """The root span, which covers the first decision, and the spans of the orders that the alerts are based on."""
        first = self._alerts[0]
        start_us = first.entry_us if first.received_us is None else first.received_us
        orders = [span for alert in self._alerts if (span := _order_in_force(alert, case_versions))]
        orders = list({span.span_id: span for span in orders}.values())
        links = tuple(SpanLink(span.trace_id, span.span_id, span.name) for span in orders)
        times_us = (start_us, self._ended_us[self._alert_span_id(first)])
        about = {"incident_id": self._incident_id, "exercise": first.exercise}
        root = self._span((), "", "geofence", name="incident opened", times_us=times_us, attributes=about, links=links)
        return [root, *orders]

    def decisions(self) -> list[TraceSpan]:
        """The spans from each report to its alerts."""
        by_entry: dict[tuple[int, int], list[AlertFact]] = {}
        for alert in self._alerts:
            by_entry.setdefault((alert.partition, alert.sequence), []).append(alert)
        return [span for alerts in by_entry.values() for span in self._decision(alerts)]

    def _decision(self, alerts: Sequence[AlertFact]) -> list[TraceSpan]:
        first = alerts[0]
        entry = f"LOG_{first.partition}#{first.sequence}"
        shows = SEE_ALL.union(*(alert.legs for alert in alerts))
        spans = []
        parent_id = self._root_id
        since_us = first.entry_us
        if first.received_us is not None:
            sent = parsed(first.sender)
            links = (SpanLink(sent[0], sent[1], "sent in"),) if sent else ()
            about = {"stored": entry, "reports_together": str(first.together)}
            times_us = (first.received_us, first.entry_us)
            what = ("received", first.partition, first.sequence)
            spans.append(
                self._span(
                    what,
                    parent_id,
                    "ingest",
                    name="report received",
                    times_us=times_us,
                    attributes=about,
                    shows=shows,
                    links=links,
                )
            )
            parent_id, since_us = spans[-1].span_id, spans[-1].end_us
        decided_us = min((alert.decided_us for alert in alerts if alert.decided_us is not None), default=None)
        if decided_us is not None:
            what = ("evaluated", first.partition, first.sequence)
            times_us = (since_us, decided_us)
            spans.append(
                self._span(
                    what,
                    parent_id,
                    "geofence",
                    name="evaluated",
                    times_us=times_us,
                    attributes={"read": entry},
                    shows=shows,
                )
            )
            parent_id, since_us = spans[-1].span_id, spans[-1].end_us
        for alert in alerts:
            about = {
                "alert_id": alert.alert_id,
                "kind": alert.alert_kind,
                "demand": alert.demand,
                "stored": f"ALERTS#{alert.stored}",
                "ends": "incident" if alert.ends else "",
                "notice": alert.notice,
                "checked_by": ", ".join(alert.checked_by),
            }
            times_us = (since_us, alert.published_us)
            legs = SEE_ALL.union(alert.legs, alert.checked_by)
            spans.append(
                self._span(
                    ("alert", alert.alert_id),
                    parent_id,
                    "geofence",
                    name="alert",
                    times_us=times_us,
                    attributes=about,
                    shows=legs,
                )
            )
        return spans

    def steps(self, steps: Iterable[StepFact]) -> list[TraceSpan]:
        """The spans of each leg's steps, in their order."""
        by_assignment: dict[str, list[StepFact]] = {}
        for step in steps:
            by_assignment.setdefault(step.assignment_id, []).append(step)
        spans = []
        for assignment_steps in by_assignment.values():
            offer_id, since_us = "", 0
            before: StepFact | None = None
            for step in sorted(assignment_steps, key=lambda step: step.number):
                step_name, shows = _name_and_viewers(step, before)
                offers = step.state in OFFERS and step_name == STEP_NAME_OF_STATE[step.state]
                parent_id = offer_id
                if offers or not offer_id or step_name == STEP_NAME_OF_STATE[_OVER]:
                    parent_id, alert_us = self._leading_alert(step)
                    since_us = max(since_us, alert_us)
                span, before = self._step(step, step_name, shows, parent_id=parent_id, since_us=since_us), step
                if offers or not offer_id:
                    offer_id = span.span_id
                since_us = span.end_us
                spans.append(span)
        return spans

    def _leading_alert(self, step: StepFact) -> tuple[str, int]:
        """Span id and end of the alert that led to a step, or of the root if no alert did."""
        alert = _leading(self._alerts, step)
        span_id = self._alert_span_id(alert) if alert else self._root_id
        return span_id, self._ended_us[span_id]

    def _alert_span_id(self, alert: AlertFact) -> str:
        return span_id_of(self._incident_id, "alert", alert.alert_id)

    def _step(
        self, step: StepFact, step_name: str, shows: frozenset[str], *, parent_id: str, since_us: int
    ) -> TraceSpan:
        about = {
            "assignment_id": step.assignment_id,
            "stored": f"INCIDENTS#{step.stored}",
            "told_others_us": str(step.published_us),
            "escalation_reason": step.escalation_reason,
            "escalation_level": step.level,
            "task": step.task,
        }
        what = ("step", step.assignment_id, step.number)
        name = f"{step.leg} {step_name}"
        return self._span(
            what,
            parent_id,
            f"dispatch-{step.leg}",
            name=name,
            times_us=(since_us, step.done_us),
            attributes=about,
            shows=shows,
        )

    def uses(self, uses: Iterable[DataUse]) -> list[TraceSpan]:
        """The spans of the uses of personal data and positions for the incident. The proof of them is the ledger."""
        spans = []
        for use in uses:
            what, times_us = ("use", use.sequence), (use.at_us, use.at_us)
            name = f"ledger: {use.deed.lower().replace('_', ' ')}"
            spans.append(
                self._span(
                    what,
                    self._root_id,
                    "registry",
                    name=name,
                    times_us=times_us,
                    attributes=_about_use(use),
                    shows=frozenset({REVIEWER}),
                )
            )
        return spans


def _leading(alerts: Sequence[AlertFact], step: StepFact) -> AlertFact | None:
    """The alert that led to a step: the alert from the report that the step names, else the last alert before the step, else None.

    The alert that ends an incident dispatches no leg, and a STOOD_DOWN step still names the report of its offer. So the alert that
    led to such a step is the last alert before the step, whichever leg it is for. An amended account leads to no step.
    """
    over = step.state == _OVER
    leading = [alert for alert in alerts if alert.alert_kind != _AMENDED]
    for_leg = [alert for alert in leading if over or step.leg in alert.legs]
    same_report = [
        alert for alert in for_leg if not over and step.cause_us is not None and alert.received_us == step.cause_us
    ]
    before = [alert for alert in for_leg if alert.published_us // 1000 <= step.done_us // 1000]
    return same_report[0] if same_report else before[-1] if before else None


def _about_use(use: DataUse) -> dict[str, str]:
    return {
        "deed": use.deed,
        "who": use.who,
        "giver": use.giver,
        "legal_basis": use.legal_basis,
        "purpose": use.purpose,
        "record_kind": use.record_kind,
        "stored": f"ledger#{use.sequence}",
    }


def _name_and_viewers(step: StepFact, before: StepFact | None) -> tuple[str, frozenset[str]]:
    """Name of a step and its viewers, from the change that the step made to its assignment."""
    own_desk = SEE_ALL | {step.leg}
    if before and step.flag != before.flag:
        return step.flag.lower().replace("_", " ") or _NOTED, SEE_PERSON_FLAG
    if before and step.absent != before.absent:
        missing = sorted(set(step.absent) - set(before.absent))
        back = sorted(set(before.absent) - set(step.absent))
        return ", ".join([*(f"misses {leg}" for leg in missing), *(f"sees {leg} again" for leg in back)]), own_desk
    if step.contact and (before is None or step.contact != before.contact):
        return f"first contact: {step.contact.removeprefix('CONTACT_').lower().replace('_', ' ')}", EVERYBODY
    if before and before.same_as(step):
        return _NOTED, own_desk
    if is_receipt(step, before):
        return "received by the desk", EVERYBODY
    if step.leg == WARNING and step.state == "ACKNOWLEDGED":
        return _DELIVERED, EVERYBODY
    step_name = STEP_NAME_OF_STATE.get(step.state, step.state.lower().replace("_", " "))
    return step_name, EVERYBODY if step.state not in MOVES else own_desk


def is_receipt(step: StepFact, before: StepFact | None) -> bool:
    """Whether a step only records that the desk's client received an offer.

    An assignment stays received while it is escalated to the same desk. So a step that changes the state or the offer is the
    escalation or the offer, not the receipt.
    """
    if not step.received:
        return False
    if before is None:
        return step.state in OFFERS
    return not before.received and (before.state, before.offer) == (step.state, step.offer)


def _order_in_force(alert: AlertFact, case_versions: Mapping[str, Sequence[CaseVersion]]) -> TraceSpan | None:
    """Span of the case version that an alert was decided on, in a trace of its own, since the version may be months older."""
    before = [
        case_version for case_version in case_versions.get(alert.case_id, ()) if case_version.sequence < alert.sequence
    ]
    if not before:
        return None
    last = max(before, key=lambda case_version: case_version.sequence)
    about = {"case_id": last.case_id, "version": str(last.version), "stored": f"LOG_{alert.partition}#{last.sequence}"}
    return TraceSpan(
        trace_id=trace_id_of(f"{last.case_id}:{last.version}"),
        span_id=span_id_of(f"{last.case_id}:{last.version}"),
        parent_id="",
        service="registry",
        name="order in force",
        start_us=min(last.made_us, last.stored_us),
        end_us=last.stored_us,
        attributes=about,
    )
