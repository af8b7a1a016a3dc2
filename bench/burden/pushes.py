"""Messages that the protected person's telephone gets in a week of the burden study, by the rules of the warning leg. Pure.

Her phone is at hand: it shows each message at once. What she has read is repeated as the leg repeats it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import NamedTuple

from services.dispatch.warning import translate as warnings
from services.dispatch.warning.domain import (
    Cleared,
    DueInstruction,
    IncidentThreats,
    Instruction,
    Issued,
    MessageKind,
    ReceiptKind,
    Unchanged,
    WarnedIncident,
    evolve,
    instruct,
    plan,
    repeat_after_ms,
)
from services.dispatch.warning.translate import PhoneSilent
from services.geofence import translate
from services.geofence.domain.alerts import Alert

REPETITION = "REPETITION"
"""Beginning of the name of a repetition in the counts."""


class _Waiting(NamedTuple):
    issued: Issued
    alert: str
    """Kind and demand of the alert that caused the message."""


class _Person:
    """The messages to one person."""

    def __init__(self) -> None:
        self.threats: defaultdict[str, IncidentThreats] = defaultdict(IncidentThreats)
        self._last: _Waiting | None = None
        self._waiting: _Waiting | None = None
        self._repeat_ms: int | None = None
        self._repetitions = 0
        self.sent: Counter[str] = Counter()

    def plan(self, alert: str, now_ms: int) -> None:
        """Decides what is told after an alert."""
        incidents = [WarnedIncident(id_, threats) for id_, threats in self.threats.items() if threats.is_open]
        last = self._last.issued if self._last else None
        waiting = self._waiting.issued if self._waiting else None
        planned = plan(last, waiting, instruct(incidents), now_ms=now_ms)
        if isinstance(planned, DueInstruction):
            self._waiting = _Waiting(Issued(planned.instruction, planned.due_ms), alert)
        elif planned is Unchanged.AS_ISSUED:
            self._waiting = None

    def pass_to(self, now_ms: int) -> None:
        """Sends what is due by a moment."""
        if self._waiting is not None and self._waiting.issued.at_ms <= now_ms:
            self._repeat(self._waiting.issued.at_ms)
            self._last = self._waiting
            self._waiting = None
            self._repetitions = 0
            instruction, sent_ms = self._last.issued
            kind = MessageKind.INSTRUCTION if instruction else MessageKind.OVER
            self.sent[f"{kind.value} ({self._last.alert})"] += 1
            self._repeat_ms = self._next_ms(instruction, sent_ms)
        self._repeat(now_ms)

    def _repeat(self, now_ms: int) -> None:
        while self._last is not None and self._repeat_ms is not None and self._repeat_ms <= now_ms:
            self._repetitions += 1
            self.sent[f"{REPETITION} ({self._last.alert})"] += 1
            self._repeat_ms = self._next_ms(self._last.issued.instruction, self._repeat_ms)

    def _next_ms(self, instruction: Instruction | None, sent_ms: int) -> int | None:
        if instruction is None:
            return None
        after_ms = repeat_after_ms(instruction, ReceiptKind.DISPLAYED, self._repetitions)
        return None if after_ms is None else sent_ms + after_ms


class Pushes:
    """Decides which messages the alerts of a week lead to."""

    def __init__(self) -> None:
        self._persons: defaultdict[str, _Person] = defaultdict(_Person)
        self._others: Counter[str] = Counter()

    def note(self, alert: Alert, now_ms: int) -> None:
        """Adds the messages of an alert that is read at a moment of mesh time."""
        warnable = warnings.alert(translate.alert_to_proto(alert, 0).SerializeToString())
        if warnable is None:
            return
        occurrence, name = warnable.occurrence, f"{alert.kind.value}, {alert.demand.name}"
        if isinstance(occurrence, PhoneSilent):
            self._others[f"{MessageKind.PHONE_SILENT.value} ({name})"] += len(warnable.person_ids)
            return
        person_ids = list(warnable.person_ids)
        if isinstance(occurrence, Cleared):
            person_ids += [id_ for id_, person in self._persons.items() if warnable.incident_id in person.threats]
        for person_id in dict.fromkeys(person_ids):
            person = self._persons[person_id]
            person.pass_to(now_ms - 1)  # alerts of one moment are read together
            person.threats[warnable.incident_id] = evolve(person.threats[warnable.incident_id], occurrence)
            person.plan(name, now_ms)

    def sent(self, now_ms: int) -> Counter[str]:
        """Number of messages by a moment, by kind and by the alert that caused them."""
        for person in self._persons.values():
            person.pass_to(now_ms)
        return sum((person.sent for person in self._persons.values()), self._others.copy())
