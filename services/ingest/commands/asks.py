"""Intervals that several askers need of a device, and the one command that the device should follow. Pure.

Askers are the decision (the fold), each pursuit, and each agency's desk. The smallest interval among the asks in force is in effect. An
ask ends by its own time, by its asker's next interval, or by its asker's withdrawal; nobody ends another's ask.

The state follows from the interval commands of the stream COMMANDS, in their order and judged by their own times. So all ingest
processes agree on the command that a device should follow, and a restart loses nothing. The clock is needed only to notice that an ask
ended (`DeviceAsks.correction`). The command that corrects a device names the command that it replaces, so that of several corrections
only the first in the stream counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

FOLD = "geofence"
"""Issuer of the commands that the decision asks for."""
REFUSAL_HOLDS_MS = 3_600_000
"""Time for which an interval that the device refused isn't sent again, milliseconds of mesh time."""
CLOCK_TOLERANCE_MS = 5_000
"""Maximum difference between the clocks of two ingest processes, milliseconds. Within it a process doesn't undo a correction that
another one has made because an ask ended by its clock."""
FORGOTTEN_AFTER_MS = 3_600_000
"""Time after the end of an ask for which the ask is remembered, milliseconds, so that an older one that comes late doesn't return."""
REMEMBERED = 16
"""Number of replaced commands of a device that are remembered."""

HELD = "not sent: another asker needs a shorter interval"
REFUSED_BEFORE = "not sent: the device refused this interval within the last hour"
OUTDATED = "not sent: a newer interval came first"


class Asker(NamedTuple):
    """Somebody who asks a device for an interval."""

    name: str
    """FOLD, an agency such as "moj", or the SPIFFE id of a leg that leads pursuits."""
    reference: str
    """Incident of a pursuit. Empty for other askers."""

    @classmethod
    def of(cls, issued_by: str, reference: str) -> Asker:
        """Asker of a command with this issuer. All desks of an agency are one asker, and so is each incident's pursuit."""
        scheme, _, path = issued_by.partition("://")
        agency, _, role = path.partition("/")
        if scheme != "spiffe":
            return cls(issued_by, "")
        return cls(issued_by, reference) if role.startswith("service/") else cls(agency, "")


@dataclass(frozen=True, slots=True)
class IntervalAsk:
    """An interval that an asker needs of a device."""

    command_id: str
    """Command with which it was asked."""
    asker: Asker
    issued_by: str
    """SPIFFE id of the desk or leg, or FOLD."""
    reference: str
    """Incident or order that it is for. May be empty."""
    interval_s: int
    issued_at_ms: int
    """When it was asked, mesh time."""
    until_ms: int
    """When it ends, mesh time."""


class Followed(NamedTuple):
    """The interval command that a device should follow."""

    command_id: str
    ask_id: str | None
    """Command of the ask that it serves. None if the device returns to its usual interval."""


class RefusedInterval(NamedTuple):
    """A device's refusal of an interval."""

    at_ms: int
    reason: str


class Correction(NamedTuple):
    """An interval that a device isn't told yet, since an ask ended or was withdrawn."""

    ask: IntervalAsk | None
    """IntervalAsk that is in effect now. None: nobody asks any more."""
    replaces: str
    """Id of the command that the device follows. Empty if it follows none."""


@dataclass(slots=True)
class DeviceAsks:
    """Asks for one device."""

    current: Followed | None = None
    """Command that the device should follow. None if it never had one."""
    check_at_ms: int = 0
    """Earliest time at which the ask in effect may change by itself, mesh time. 0 if the asks have changed since the last check."""
    _asks: dict[Asker, IntervalAsk] = field(default_factory=dict)
    _refusals: dict[int, RefusedInterval] = field(default_factory=dict)
    """Last refusal of each interval, by seconds."""
    _replaced: deque[str] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """Ids of the commands that the device followed before."""

    @property
    def refusals(self) -> Mapping[int, RefusedInterval]:
        """Last refusal of each interval, by seconds."""
        return self._refusals

    def in_force(self, at_ms: int) -> list[IntervalAsk]:
        """Returns the asks in force at a time, smallest interval first."""
        return sorted((ask for ask in self._asks.values() if ask.until_ms > at_ms), key=_precedence)

    def in_effect(self, at_ms: int) -> IntervalAsk | None:
        """Returns the ask with the smallest interval that the device didn't refuse, or None."""
        return next((ask for ask in self.in_force(at_ms) if not self.is_refused(ask.interval_s, at_ms)), None)

    def is_refused(self, interval_s: int, at_ms: int) -> bool:
        """Whether the device refused an interval within the last hour."""
        refusal = self._refusals.get(interval_s)
        return refusal is not None and at_ms - refusal.at_ms < REFUSAL_HOLDS_MS

    # ── the commands of the stream ───────────────────────────────────────────────────────────────────────────────────

    def ask(self, ask: IntervalAsk) -> str:
        """Adds an ask, which replaces its asker's older one. Returns the reason why its command isn't sent, or an empty text."""
        known = self._asks.get(ask.asker)
        # Two ingest processes may store two of the decision's requests in the wrong order. The decision's time never goes back.
        if ask.asker.name == FOLD and known is not None and known.issued_at_ms > ask.issued_at_ms:
            return OUTDATED
        self._asks[ask.asker], self.check_at_ms = ask, 0
        if self.in_effect(ask.issued_at_ms) is ask:
            self._follow(Followed(ask.command_id, ask.command_id))
            return ""
        return REFUSED_BEFORE if self.is_refused(ask.interval_s, ask.issued_at_ms) else HELD

    def withdraw(self, asker: Asker, command_id: str, at_ms: int) -> str:
        """Ends an asker's ask. Returns the reason why the command isn't sent, or an empty text."""
        self._asks.pop(asker, None)
        self.check_at_ms = 0
        if self.in_force(at_ms):
            return HELD
        self._follow(Followed(command_id, None))
        return ""

    def correct(self, command_id: str, ask_id: str, replaces: str) -> str:
        """Notes a correction. Returns the reason why its command isn't sent, or an empty text."""
        if replaces in self._replaced:
            return OUTDATED
        self._follow(Followed(command_id, ask_id or None))
        return ""

    def end_unsent(self, command_id: str) -> None:
        """Ends the ask of a command that expired before it was sent: its desk was told so."""
        self._asks = {asker: ask for asker, ask in self._asks.items() if ask.command_id != command_id}
        self.check_at_ms = 0

    def refuse(self, interval_s: int, at_ms: int, reason: str) -> None:
        """Notes that the device refused an interval."""
        self._refusals[interval_s], self.check_at_ms = RefusedInterval(at_ms, reason), 0

    def _follow(self, followed: Followed) -> None:
        if self.current is not None:
            self._replaced.append(self.current.command_id)
        self.current, self.check_at_ms = followed, 0

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def correction(self, now_ms: int) -> Correction | None:
        """Returns the interval that the device must be told now, or None if it follows the one in effect."""
        if self._is_right(now_ms) or self._is_right(now_ms + CLOCK_TOLERANCE_MS):
            ends = [ask.until_ms for ask in self.in_force(now_ms)]
            ends += [refusal.at_ms + REFUSAL_HOLDS_MS for refusal in self._refusals.values()]
            self.check_at_ms = min((end_ms for end_ms in ends if end_ms > now_ms), default=now_ms + REFUSAL_HOLDS_MS)
            return None
        return Correction(self.in_effect(now_ms), self.current.command_id if self.current else "")

    def _is_right(self, at_ms: int) -> bool:
        ask = self.in_effect(at_ms)
        if ask is not None:
            return self.current is not None and self.current.ask_id == ask.command_id
        # A device that refused all that is asked keeps what it has: its usual interval may be longer still.
        return self.current is None or self.current.ask_id is None or bool(self.in_force(at_ms))

    def forget(self, now_ms: int) -> bool:
        """Drops what is over. Returns whether nothing is left."""
        self._asks = {asker: ask for asker, ask in self._asks.items() if ask.until_ms > now_ms - FORGOTTEN_AFTER_MS}
        self._refusals = {
            interval_s: refusal
            for interval_s, refusal in self._refusals.items()
            if now_ms - refusal.at_ms < REFUSAL_HOLDS_MS
        }
        return not self._asks and not self._refusals and (self.current is None or self.current.ask_id is None)


def _precedence(ask: IntervalAsk) -> tuple[int, int, str]:
    return (ask.interval_s, -ask.until_ms, ask.command_id)
