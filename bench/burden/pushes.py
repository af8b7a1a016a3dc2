"""Messages that the protected person's telephone gets in a week of the burden study, by the rules of the warning leg. Pure."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from services.dispatch.warning import translate as warnings
from services.dispatch.warning.domain import REPLACED_BY_ANY, Notice, NotifiedState, decide
from services.geofence import translate
from services.geofence.domain.alerts import Alert


class _Warned(NamedTuple):
    """A person in an incident."""

    incident_id: str
    person_id: str


class _Message(NamedTuple):
    warned: _Warned
    due_ms: int
    notice: Notice
    alert: str
    """Kind and demand of the alert that caused the message."""


class Pushes:
    """Decides which messages the alerts of a week lead to."""

    def __init__(self) -> None:
        self._states: dict[_Warned, NotifiedState] = {}
        self._messages: list[_Message] = []

    def note(self, alert: Alert, now_ms: int) -> None:
        """Adds the messages of an alert that is read at a moment of mesh time."""
        warnable = warnings.alert(translate.alert_to_proto(alert, 0).SerializeToString())
        if warnable is None:
            return
        occurrence, incident_id = warnable.occurrence, warnable.occurrence.incident_id
        person_ids = list(warnable.person_ids)
        if occurrence.clears:
            person_ids += [warned.person_id for warned in self._states if warned.incident_id == incident_id]
        for person_id in dict.fromkeys(person_ids):
            warned = _Warned(incident_id, person_id)
            self._states[warned], message = decide(self._states.get(warned, NotifiedState()), occurrence, now_ms)
            if message is not None:
                kind = f"{alert.kind.value}, {alert.demand.name}"
                self._send(_Message(warned, message.due_ms, message.notice, kind), now_ms)

    def sent(self) -> Counter[str]:
        """Number of messages by notice and by the alert that caused them."""
        return Counter(f"{message.notice.value} ({message.alert})" for message in self._messages)

    def _send(self, newer: _Message, now_ms: int) -> None:
        self._messages = [
            message
            for message in self._messages
            if message.warned != newer.warned
            or message.due_ms <= now_ms
            or message.due_ms < newer.due_ms
            or message.notice not in REPLACED_BY_ANY | {newer.notice}
        ]
        self._messages.append(newer)
