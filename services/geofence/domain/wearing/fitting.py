"""Fitting: the duty of a respondent under an order of item 3-2 to be fitted with a tag, and to keep one (Tag Act 31-6).

The police are notified if the respondent has no tag by the court's time, or refuses one, without good cause (31-6(4) item 1). That the
record of the last tag ends while the order is valid is an alert of Tandem's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.geofence.domain import demands
from services.geofence.domain.decisions import AlertDraft, CaseContext
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors.detector import Amendment, Detector
from services.geofence.domain.entries import Case, TagDuty
from services.geofence.domain.state import CasePart
from services.geofence.domain.wearing import removals

EXCHANGE_MS = 600_000
"""How long a wearer may be without a tag in the records before that is an alert: an exchange of the tag is two records."""
_OVER = {
    Detection.NOT_FITTED: Detection.FITTING_SETTLED,
    Detection.TAG_LAPSED: Detection.LAPSE_SETTLED,
}


@dataclass(slots=True)
class FittingState:
    """What the fold remembers of a respondent's duty to wear a tag."""

    worn: bool = False
    """Whether the respondent ever wore a tag under the order."""
    lapsed_ms: int | None = None
    """Since when the records name no tag of a respondent who wore one; None while they name one."""
    notified: Detection | None = None
    """The notice that is active; None if none is."""


def _to_json(memory: FittingState) -> list[Any]:
    return [memory.worn, memory.lapsed_ms, memory.notified.value if memory.notified else None]


def _of_json(content: Sequence[Any]) -> FittingState:
    worn, lapsed_ms, notified = content
    return FittingState(worn, lapsed_ms, Detection(notified) if notified else None)


FITTING = CasePart("fitting", new=FittingState, encode=_to_json, decode=_of_json, outlives_episode=True)


def check(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Emits that no tag is worn, and the end of that. Returns the moment of the next check."""
    duty = context.case_state.case.tag_duty
    if duty is None or context.state.log_version < removals.FIRST_VERSION:
        return ()  # nearly always
    return _check(context, duty, at_ms)


def _check(context: CaseContext, duty: TagDuty, at_ms: int) -> Iterator[int]:
    case = context.case
    memory = FITTING.of(context.case_state)
    if case.tag_device_ids:
        memory.worn, memory.lapsed_ms = True, None
        _settle(context, at_ms)
        return
    if memory.worn and memory.lapsed_ms is None:
        memory.lapsed_ms = at_ms
    # What is excused now counts once the excuse ends, whatever was due before.
    due_ms = _unexcused_ms(case, duty, max(at_ms, _due_ms(duty, memory)))
    if due_ms > at_ms:
        _settle(context, at_ms)
        yield due_ms
    elif memory.notified is None:
        memory.notified = Detection.TAG_LAPSED if memory.worn else Detection.NOT_FITTED
        _emit(context, memory.notified, at_ms)


def _due_ms(duty: TagDuty, memory: FittingState) -> int:
    if memory.lapsed_ms is not None:
        return memory.lapsed_ms + EXCHANGE_MS
    return duty.fit_by_ms if duty.refused_ms is None else min(duty.fit_by_ms, duty.refused_ms)


def _unexcused_ms(case: Case, duty: TagDuty, from_ms: int) -> int:
    """The first moment from `from_ms` on for which neither good cause nor an authorised removal is recorded."""
    while True:
        until_ms = removals.first_uncovered_ms(duty.good_causes, from_ms)
        until_ms = removals.first_uncovered_ms(case.removals, until_ms)
        if until_ms == from_ms:
            return from_ms
        from_ms = until_ms


def amend(context: CaseContext, amendment: Amendment) -> None:
    """Settles the notice if the new snapshot knows no such duty, or isn't in force yet."""
    if amendment.case.tag_duty is None or not amendment.in_force:
        _settle(context, context.state.now_ms)


def end(context: CaseContext) -> None:
    """Settles the notice of an order that ends, and forgets the duty."""
    _settle(context, context.case.end_ms)
    context.case_state.of_case.pop(FITTING.name, None)


def _settle(context: CaseContext, at_ms: int) -> None:
    memory = context.case_state.of_case.get(FITTING.name)
    if memory is not None and memory.notified is not None:
        _emit(context, _OVER[memory.notified], at_ms)
        memory.notified = None


def _emit(context: CaseContext, detection: Detection, at_ms: int) -> None:
    kind, demand = demands.DETECTIONS[detection]
    context.alert(AlertDraft(kind, demand, at_ms))


WHY = {
    Detection.NOT_FITTED: (
        "the respondent wears no tag by the court's time, or refused one, and no good cause is recorded (Tag Act 31-6(4) item 1)"
    ),
    Detection.TAG_LAPSED: "the record of the last tag ended while the order of item 3-2 is valid, and nothing explains it",
}
DETECTOR = Detector(on_time=check, on_amend=amend, on_end=end, parts=(FITTING,), why=WHY)
