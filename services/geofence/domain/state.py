"""What the fold remembers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.alerts import AnomalyKind
from services.geofence.domain.entries import Case, Demand, EquipmentKind, Ring, Target
from services.geofence.domain.kinematics.rings import RingState
from services.geofence.domain.kinematics.track import WINDOW_MS, Fix, Track
from services.geofence.domain.kinematics.travel_feasibility import Way
from services.geofence.domain.rules import Rules

MAX_EQUIPMENT_REPORTS = 1_000
"""Equipment reports of a device that are known again; as many as a batch may hold, so that a batch sent again is known whole."""
ANOMALY_INTERVAL_MS = 3_600_000
"""What is odd about a device is told once an hour."""
TIMED_CHECK = -1
"""In place of a version in `State.due`: a moment at which silence may decide something."""
CONTACT_EMITTED = -1
"""In place of a moment in `CaseState.closing`."""
WEARER = "wearer"
"""Key of the wearer beside those of targets."""


class LastWarning(NamedTuple):
    """What a protected person was told last of where the wearer is."""

    apart_mm: float
    at_ms: int
    """When, mesh time."""
    rings: int
    """How many rings were entered then."""


class PossiblePresenceState(NamedTuple):
    """That a wearer may be within the ring that demands a response."""

    last_ms: int
    """When positions last allowed it, mesh time."""
    emitted: bool
    """Desks were told of it."""


class EndedEvent(NamedTuple):
    """The newest end of an equipment event of a device."""

    at_ms: int
    """When, by the device."""
    emitted: bool
    """A beginning that it ended was told."""


@dataclass(slots=True)
class CaseState:
    """One joint case."""

    case: Case
    rings: dict[tuple[str, int], RingState] = field(default_factory=dict)
    """By the target's key and radius, mm."""
    episode_id: str = ""
    raised: dict[str, int] = field(default_factory=dict)
    """Equipment events that nothing has taken back, `<event> <device>` -> when."""
    ended: bool = False
    """The order's validity has ended."""
    awaited_from_ms: dict[str, int] = field(default_factory=dict)
    """By WEARER or the key of a person: since when a report of their devices is awaited, in force."""
    silent: Demand | None = None
    """What was demanded last because no tag is heard; None while one is."""
    lost: dict[str, bool] = field(default_factory=dict)
    """Persons whose devices aren't heard, by key, and whether that was told; it isn't where the devices have said why."""
    near: dict[str, Demand] = field(default_factory=dict)
    """Targets that the wearer can have reached unseen, by key, and what was demanded."""
    possible_presences: dict[str, PossiblePresenceState] = field(default_factory=dict)
    """Targets of which positions allow that the wearer is within the ring that demands a response, by key."""
    unseen: bool = False
    """Where the wearer is, is unknown."""
    warned: dict[str, LastWarning] = field(default_factory=dict)
    """Persons within whose ring the wearer is, by key: what they were told last."""
    grouped: list[str] = field(default_factory=list)
    """What the notice of an outage stands for: what was found, and of which target."""
    approaching_since_ms: dict[str, int] = field(default_factory=dict)
    """`<target> <device>` whose movement leads the two together, and since when; TOLD by target once that was told in this episode."""
    amend_ms: int | None = None
    """When the next amended account is published, mesh time; None where none waits."""
    next_check_ms: int = 0
    """When silence may decide something next; other wakes in `State.due` are void."""
    withheld: dict[str, int] = field(default_factory=dict)
    """All-clears that no vehicle's movement explains, `<target> <radius>`: since when positions say so; 0 where that is over and
    the desks were told in this episode."""
    ways: dict[str, list[Way]] = field(default_factory=dict)
    """Ways from where a ring was seen entered last through what was forgotten since, by ring, pair of devices and device."""

    def ring(self, target: Target, ring: Ring) -> RingState:
        """State of one ring of one target."""
        return self.rings[target.key, ring.radius_mm]

    @property
    def is_quiet(self) -> bool:
        """No ring is entered, and nothing stands that demands a response."""
        holds_incident = any(EquipmentKind(key.partition(" ")[0]) in demands.HOLDS_INCIDENT for key in self.raised)
        holds_incident = holds_incident or Demand.RESPOND in self.near.values()
        return not holds_incident and not any(ring.open for ring in self.rings.values())

    @property
    def rechecks_on_report(self) -> bool:
        """Each report may change what time alone has decided."""
        return self.unseen or (bool(self.episode_id) and any(ring.muted for ring in self.rings.values()))

    def devices(self, key: str) -> tuple[str, ...]:
        """Devices of the wearer or a person."""
        if key == WEARER:
            return self.case.tag_device_ids
        return next(target.device_ids for target in self.case.targets if target.key == key)

    def has_active(self, events: frozenset[EquipmentKind], device_id: str) -> bool:
        """Whether one of these events of a device was told and nothing has taken it back."""
        return any(event_key(event, device_id) in self.raised for event in events)


@dataclass(slots=True)
class OpenIncident:
    """One for each wearer while any episode is open."""

    incident_id: str
    case_ids: list[str] = field(default_factory=list)
    """Cases with an open episode."""


@dataclass(slots=True)
class Outage:
    """Many wearers fell silent together, and most still are."""

    outage_id: str
    incident_id: str
    """What the legs keep its notice under."""
    from_ms: int
    """When the first of them was last heard, mesh time."""
    members: dict[str, None]
    """Cases whose wearers fell silent in it and still are."""
    max_silent: int
    """How many were silent at the most."""


@dataclass(slots=True)
class State:
    """Everything that decides about the next entry."""

    partition: int
    log_id: str = ""
    """Which log this is a fold of; part of the cause of every id."""
    sequence: int = 0
    """Last entry applied."""
    now_ms: int = 0
    """Greatest stamp so far, mesh time."""
    clock_rate: int = 1
    clock_anchor_ms: int = 0
    rules: Rules = field(default_factory=Rules)
    rules_since_ms: int = 0
    """When the log last said so, mesh time."""
    tracks: dict[str, Track] = field(default_factory=dict)
    """By device."""
    heard_at_ms: dict[str, int] = field(default_factory=dict)
    """When a report of each device last came into the log, mesh time, whatever was in it: one that was buffered, sent again or has a
    wrong clock is contact too. It says that a device isn't silent, never where it is."""
    equipment_reports: dict[str, dict[str, int]] = field(default_factory=dict)
    """Equipment reports of each device by id, in the order in which they came, and when: the last 2 h, at most the newest 1,000."""
    active_events: dict[str, dict[str, int]] = field(default_factory=dict)
    """By device: events that nothing has taken back, and when they began. They wait for orders that are yet to come."""
    ended_events: dict[str, dict[str, EndedEvent]] = field(default_factory=dict)
    """By device: events that were taken back, by their beginning, and when last. A beginning that comes behind its end is over."""
    owners: dict[str, str] = field(default_factory=dict)
    """Whose each device is, as the newest case says that names it."""
    owned_since: dict[str, int] = field(default_factory=dict)
    """Devices that changed hands, and when: what they said before is of somebody else."""
    order_ended_ms: dict[str, int] = field(default_factory=dict)
    """By device: when the last order that named it was over. What it reports of the time before comes too late to be decided on."""
    anomaly_emitted_ms: dict[str, int] = field(default_factory=dict)
    """`<doubt> <what>`: when it was told last that something can't be taken as it stands."""
    undated_ms: dict[str, int] = field(default_factory=dict)
    """Devices of which only what is dated too far off has come since then, mesh time."""
    cases: dict[str, CaseState] = field(default_factory=dict)
    incidents: dict[str, OpenIncident] = field(default_factory=dict)
    """Open incident of each wearer who has one."""
    due: list[tuple[int, str, int]] = field(default_factory=list)
    """Heap of moments at which a case begins or ends, or silence may decide something: when, case, version or WAKE."""
    outage: Outage | None = None
    outage_over_ms: int = 0
    """When the last outage was over, mesh time."""
    silences: dict[str, int] = field(default_factory=dict)
    """Cases whose wearers fell silent in the last 3 minutes before the newest of these, outside an outage, and still are, in the order
    in which that was found, and when."""
    watched: set[str] = field(default_factory=set)
    """Cases in force, in earnest, whose wearer has a tag; derived from `cases`."""
    grouped: set[str] = field(default_factory=set)
    """Cases with `CaseState.grouped`; derived from `cases`."""
    cases_of: dict[str, list[str]] = field(default_factory=dict)
    """Cases in which a device plays a part, sorted; derived from `cases`."""
    silent_devices: set[str] = field(default_factory=set)
    """Devices whose silence was told, perhaps more; derived from `cases`."""

    def last_fix(self, device_ids: tuple[str, ...]) -> Fix | None:
        """The newest fix of several devices."""
        if len(device_ids) == 1:  # nearly always
            track = self.tracks.get(device_ids[0])
            return track.fixes[-1] if track and track.fixes else None
        tracks = [self.tracks[device_id] for device_id in device_ids if device_id in self.tracks]
        return max((track.fixes[-1] for track in tracks if track.fixes), default=None)

    def apart_mm(self, wearer: Fix, target: Target) -> tuple[float, Fix | None] | None:
        """From a fix of the wearer to the edge of a place, or a person's last fix, which comes with it; None where there is none."""
        if not target.is_person:
            return target.shape.least(wearer.point, wearer.point), None
        there = self.last_fix(target.device_ids)
        return (math.dist(wearer.point, there.point), there) if there else None

    def was_just_emitted(self, anomaly: AnomalyKind, what: str, at_ms: int) -> bool:
        """Whether the same was told within the hour; else notes that it is told now."""
        key = f"{anomaly.value} {what}"
        if at_ms < self.anomaly_emitted_ms.get(key, at_ms - ANOMALY_INTERVAL_MS) + ANOMALY_INTERVAL_MS:
            return True
        self.anomaly_emitted_ms[key] = at_ms
        return False

    def is_new_report(self, device_id: str, report_id: str) -> bool:
        """Notes an equipment report that comes now; False where it came before, so that one sent again counts once."""
        equipment_reports = self.equipment_reports.setdefault(device_id, {})
        horizon_ms = self.now_ms - WINDOW_MS
        for old_id, _ in list(takewhile(lambda report: report[1] <= horizon_ms, equipment_reports.items())):
            del equipment_reports[old_id]
        if report_id in equipment_reports:
            return False
        if len(equipment_reports) == MAX_EQUIPMENT_REPORTS:
            del equipment_reports[next(iter(equipment_reports))]
        equipment_reports[report_id] = self.now_ms
        return True

    def changes_hands(self, case: Case) -> list[str]:
        """Devices that are somebody else's by this case."""
        return [device_id for device_id, owner in _owners(case) if self.owners.get(device_id, owner) != owner]

    def record_owners(self, case: Case) -> None:
        """Notes whose the devices are. What a device said for somebody else says nothing about who has it now."""
        for device_id, owner in _owners(case):
            if self.owners.setdefault(device_id, owner) != owner:
                self.owners[device_id] = owner
                self.owned_since[device_id] = self.now_ms
                for anomaly in AnomalyKind:
                    self.anomaly_emitted_ms.pop(f"{anomaly.value} {device_id}", None)
                for known in (
                    self.tracks,
                    self.heard_at_ms,
                    self.undated_ms,
                    self.active_events,
                    self.ended_events,
                    self.order_ended_ms,
                ):
                    known.pop(device_id, None)

    def index(self, case: Case) -> None:
        """Notes in which cases the devices play a part."""
        for device_id in case.device_ids:
            case_ids = self.cases_of.setdefault(device_id, [])
            if case.case_id not in case_ids:
                case_ids.append(case.case_id)
                case_ids.sort()

    def forget(self, case: Case) -> None:
        """Takes back `index`."""
        for device_id in case.device_ids:
            case_ids = self.cases_of.get(device_id, [])
            if case.case_id in case_ids:
                case_ids.remove(case.case_id)


def _owners(case: Case) -> list[tuple[str, str]]:
    """Each device of a case and whose it is."""
    devices = [(device_id, f"wearer/{case.wearer_id}") for device_id in case.tag_device_ids]
    return devices + [(device_id, target.key) for target in case.targets for device_id in target.device_ids]


def event_key(event: EquipmentKind, device_id: str) -> str:
    """Key of `CaseState.raised`."""
    return f"{event.value} {device_id}"
