"""The fold's state: everything that decides about the next entry."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Generic, NamedTuple, TypeVar

from services.geofence.domain import demands
from services.geofence.domain.alerts import AnomalyKind
from services.geofence.domain.demands import Detection
from services.geofence.domain.entries import Case, Demand, EquipmentKind, Ring, Rules, Target
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.rings import RingState
from services.geofence.domain.kinematics.track import WINDOW_MS, Track

MAX_EQUIPMENT_REPORTS = 1_000
"""Maximum number of equipment reports per device that are recognised when resent. A batch holds at most as many, so a resent batch
is recognised whole."""
ANOMALY_INTERVAL_MS = 3_600_000
"""Minimum interval between two alerts about the same anomaly of a device: 1 h."""
WEARER = "wearer"
"""Key of the wearer, in maps that are otherwise keyed by target."""
SENT_TOGETHER_MS = 10_000
"""Reports of a device that arrive within this time may have been sent together, and in another order."""


class EventTime(NamedTuple):
    """The time of an equipment event."""

    device_ms: int
    """By the device's clock, which may be ahead."""
    arrived_ms: int
    """When its report entered the log, mesh time."""
    silent: bool = False
    """Whether the protected person called in silence. It is no part of the time, and is kept with it for cases that begin later."""

    @property
    def at_ms(self) -> int:
        """When the event was at the latest: nothing is reported before it happens."""
        return min(self.device_ms, self.arrived_ms)


class EndedEvent(NamedTuple):
    """The newest end of an equipment event of a device."""

    time: EventTime
    emitted: bool
    """Whether an alert was emitted for an event with this end."""


def is_over(begun: EventTime, ended: EventTime) -> bool:
    """Whether an event was over by the moment of an end.

    Either of two reports that were sent together may arrive first, so the device's own clock decides, even if it is ahead. Of other
    reports none is of a later time than its arrival: the clock may have been set right between them, and a new event isn't over
    because an earlier end claimed to be later.
    """
    if abs(begun.arrived_ms - ended.arrived_ms) <= SENT_TOGETHER_MS:
        return begun.device_ms <= ended.device_ms
    return begun.at_ms <= ended.at_ms


class UnitStay(NamedTuple):
    """A device's newest presence at a unit."""

    unit_id: str
    since_ms: int
    """Since when the device has been there without a break, ms since 1970 UTC."""
    seen_ms: int
    """When the device was last there."""
    left: bool
    """Whether the device left then."""


class RingKey(NamedTuple):
    """Key of a ring of a case."""

    target_key: str
    radius_mm: int


class EventKey(NamedTuple):
    """Key of an equipment event of a device."""

    event: EquipmentKind
    device_id: str


class GroupedKey(NamedTuple):
    """Key of a detection that the notice of an outage covers."""

    detection: Detection
    about: str
    """WEARER or a target's key."""


class AnomalyKey(NamedTuple):
    """Key of an anomaly. At most one alert an hour is emitted for each key."""

    anomaly: AnomalyKind
    about: tuple[str, ...]
    """Ids of the anomaly's subject: a device alone, or a device or a target with a case."""


T = TypeVar("T")
_new = tuple.__new__


@dataclass(frozen=True, slots=True)
class CasePart(Generic[T]):
    """The memory of one detector about a case. `Detector.parts` lists it.

    `encode` and `decode` convert the memory to JSON values and back, for checkpoints.
    """

    name: str
    """Name in checkpoints."""
    new: Callable[[], T]
    """Creates the memory of a new case or episode."""
    encode: Callable[[T], Any]
    decode: Callable[[Any], T]
    outlives_episode: bool = False
    """Whether the memory is kept when the episode ends; otherwise it is dropped."""

    def all_in(self, case_state: CaseState) -> dict[str, Any]:
        """The memories of a case that are kept as long as this one, by name."""
        return case_state.of_case if self.outlives_episode else case_state.of_episode

    def of(self, case_state: CaseState) -> T:
        """The detector's memory of a case."""
        parts = self.all_in(case_state)
        if self.name not in parts:
            parts[self.name] = self.new()
        part: T = parts[self.name]
        return part


def part_by_key(
    name: str, make: Callable[[Iterable[Any]], T], *, outlives_episode: bool = False
) -> CasePart[dict[str, T]]:
    """A memory of one tuple for each key. `make` creates a tuple from its fields, as the `_make` of a NamedTuple does."""
    return CasePart(
        name,
        new=dict,
        encode=lambda tuples: tuples,
        decode=lambda content: {key: make(fields) for key, fields in content.items()},
        outlives_episode=outlives_episode,
    )


@dataclass(slots=True)
class CaseState:
    """The fold's state of one joint case."""

    case: Case
    rings: dict[RingKey, RingState] = field(default_factory=dict)
    """State of each ring."""
    episode_id: str = ""
    raised: dict[EventKey, int] = field(default_factory=dict)
    """Active equipment events, and since when."""
    ended: bool = False
    """Whether the order's validity has ended."""
    awaited_from_ms: dict[str, int] = field(default_factory=dict)
    """Since when a report of the wearer's or a person's devices has been awaited while the case is in force, by WEARER or the
    person's key."""
    silent: Demand | None = None
    """The last demand made because no tag is heard; None while a tag is heard."""
    lost: dict[str, bool] = field(default_factory=dict)
    """Persons with no device that is heard, by key, and whether the desks were notified. The desks aren't notified if the devices
    announced their silence."""
    near: dict[str, Demand] = field(default_factory=dict)
    """Targets that the wearer may have reached unseen, by key, and the demand that was made."""
    unseen: bool = False
    """Whether the wearer's position is unknown."""
    grouped: list[GroupedKey] = field(default_factory=list)
    """Detections that the notice of an outage covers."""
    amend_ms: int | None = None
    """When the next amended account is published, mesh time; None if no amendment is pending."""
    next_check_ms: int | None = None
    """When the case is checked next, mesh time; None if only a report can change anything. Other checks of the case in `State.due`
    are void."""
    of_episode: dict[str, Any] = field(default_factory=dict)
    """Memories of single detectors about the episode, by `CasePart.name`."""
    of_case: dict[str, Any] = field(default_factory=dict)
    """Memories of single detectors that outlive the episode, by `CasePart.name`."""

    def ring(self, target: Target, ring: Ring) -> RingState:
        """The state of one ring of one target."""
        return self.rings[target.key, ring.radius_mm]  # type: ignore[index]  # a plain tuple equals the key and is made sooner

    @property
    def is_quiet(self) -> bool:
        """Whether no ring is entered and nothing that demands a response is active."""
        holds_incident = any(key.event in demands.HOLDS_INCIDENT for key in self.raised)
        holds_incident = holds_incident or Demand.RESPOND in self.near.values()
        return not holds_incident and not any(ring.open for ring in self.rings.values())

    def is_response_open(self, target: Target) -> bool:
        """Whether a ring of a target that demands a response is entered."""
        return any(self.ring(target, ring).open for ring in self.case.rings if ring.responds)

    def devices(self, key: str) -> tuple[str, ...]:
        """Devices of the wearer or of a person, by key."""
        if key == WEARER:
            return self.case.tag_device_ids
        return next(target.device_ids for target in self.case.targets if target.key == key)

    def has_active(self, events: frozenset[EquipmentKind], device_id: str) -> bool:
        """Whether any of these events of a device is active in this case."""
        return bool(self.raised) and any(EventKey(event, device_id) in self.raised for event in events)

    def end_episode(self) -> None:
        """Ends the episode, and drops the detectors' memories of it."""
        self.episode_id = ""
        self.of_episode.clear()


@dataclass(slots=True)
class OpenIncident:
    """The incident of a wearer, while any of the wearer's episodes is open."""

    incident_id: str
    case_ids: list[str] = field(default_factory=list)
    """Cases with an open episode in the incident."""


@dataclass(slots=True)
class Outage:
    """An outage: many wearers fell silent together, and most still are."""

    outage_id: str
    incident_id: str
    """Incident id under which the legs keep the outage's notice."""
    from_ms: int
    """When the first of the silent wearers was last heard, mesh time."""
    members: dict[str, None]
    """Cases with a wearer who fell silent in the outage and still is."""
    max_silent: int
    """The greatest number of wearers that were silent at once."""


@dataclass(slots=True)
class SensingState:
    """What the fold has asked of a tag, and when it asks next (`detectors/sensing.py`). All times are mesh time."""

    basis_s: int = 0
    """The interval that was needed when an interval was last asked for, seconds; 0 if none was."""
    renew_ms: int = 0
    """From when on the next fix of the tag renews the request."""
    is_next_uncaused: bool = False
    """Whether the next renewal asks for a shorter interval than is needed."""
    due_ms: int | None = None
    """When time may call for a request next; None if only a fix can."""
    change_ms: int | None = None
    """When the next request for an interval is made; None if no fix has called for one."""
    seen_ms: int | None = None
    """When the newest fix arrived, if a ring that demands a response can be reached from it; None if none can."""
    evaluated_ms: int = 0
    """When a fix from which a ring can be reached was last evaluated; 0 if none can be reached."""
    located_ms: int = 0
    """When the position was last asked for."""
    located: int = 0
    """How often the position was asked for since the newest fix."""
    asked_s: int = 0
    """The interval that was asked for last, seconds; 0 if none was."""
    obeyed_ms: int | None = None
    """When it was asked for, if the tag obeyed until then; None if it didn't, or nothing was asked before."""


class Due(NamedTuple):
    """A moment at which time alone may decide something. The checks of a case come before its boundary at the same moment."""

    at_ms: int
    case_id: str
    """Empty if the moment belongs to no case: a tick at that time is enough."""
    is_boundary: bool
    """Whether the case begins or ends at that moment; otherwise it is only checked."""


class Agenda:
    """Moments in order. The moments of one case are dropped without a look at those of other cases.

    Agencies renew all orders of a country at once, and each renewal drops the moments of its case. Were all moments searched each
    time, the work would grow with the square of the number of cases, and responses would wait for it.
    """

    __slots__ = ("_count", "_dropped", "_heap", "_of_case")

    def __init__(self, moments: Iterable[Due] = ()) -> None:
        self._heap: list[Due] = []
        """Dropped moments stay in the heap until they come to its top, or until they are more than a half of it."""
        self._of_case: dict[str, list[Due]] = {}
        self._count = 0
        self._dropped: Counter[Due] = Counter()
        """How many times each dropped moment is in the heap. Equal moments may be in it more than once."""
        for due in moments:
            self.add(due)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Due]:
        """All moments in order."""
        return iter(sorted(due for moments in self._of_case.values() for due in moments))

    @property
    def next_ms(self) -> int | None:
        """The earliest moment, mesh time; None if there is none."""
        return self._heap[0].at_ms if self._heap else None

    def add(self, due: Due) -> None:
        """Adds a moment."""
        heapq.heappush(self._heap, due)
        self._of_case.setdefault(due.case_id, []).append(due)
        self._count += 1

    def pop(self) -> Due:
        """Removes the first moment and returns it. Raises IndexError if there is none."""
        due = heapq.heappop(self._heap)
        moments = self._of_case[due.case_id]
        moments.remove(due)
        if not moments:
            del self._of_case[due.case_id]
        self._count -= 1
        if self._dropped:
            self._clear_top()
        return due

    def drop_case(self, case_id: str) -> None:
        """Removes all moments of a case."""
        moments = self._of_case.pop(case_id, [])
        self._count -= len(moments)
        self._dropped.update(moments)
        if 2 * self._count < len(self._heap):
            self._heap = [due for kept in self._of_case.values() for due in kept]
            heapq.heapify(self._heap)
            self._dropped.clear()
        self._clear_top()

    def _clear_top(self) -> None:
        while self._heap and self._dropped[self._heap[0]]:
            due = heapq.heappop(self._heap)
            self._dropped[due] -= 1
            if not self._dropped[due]:
                del self._dropped[due]


@dataclass(slots=True)
class State:
    """Everything that decides about the next entry of the log."""

    partition: int
    log_id: str = ""
    """Id of the folded log. The id of every alert, episode and incident is a hash of this and other values."""
    sequence: int = 0
    """Sequence of the last entry applied."""
    now_ms: int = 0
    """Greatest stamp so far, mesh time."""
    clock_rate: int = 1
    clock_anchor_ms: int = 0
    log_version_ms: int | None = None
    """When the log last demanded a fold version, mesh time; None if it never did."""
    rules: Rules = field(default_factory=Rules)
    rules_since_ms: int | None = None
    """When the log last set the rules, mesh time; None if it never did."""
    tracks: dict[str, Track] = field(default_factory=dict)
    """Track of each device."""
    stays: dict[str, UnitStay] = field(default_factory=dict)
    """Newest presence of each device at a home unit or beacon."""
    distrusted_units: dict[str, int] = field(default_factory=dict)
    """Units whose presences were contradicted, and until when none is believed, mesh time."""
    heard_at_ms: dict[str, int] = field(default_factory=dict)
    """When a report of each device last entered the log, mesh time. Any report counts, even a buffered or resent one, or one with a
    wrong clock. A report proves that the device isn't silent, but not where the device is."""
    equipment_reports: dict[str, dict[str, int]] = field(default_factory=dict)
    """Equipment reports of each device by report id, in order of arrival, and when each arrived: the last 2 h, at most the newest
    1,000."""
    active_events: dict[str, dict[str, EventTime]] = field(default_factory=dict)
    """Active events of each device and when they began. They are kept even without a case, for orders that come later."""
    ended_events: dict[str, dict[str, EndedEvent]] = field(default_factory=dict)
    """The newest end of each event of a device, by device and event. A beginning that arrives after its end is thus known to be
    over."""
    owners: dict[str, str] = field(default_factory=dict)
    """Owner of each device, from the newest case that names the device."""
    owned_since: dict[str, int] = field(default_factory=dict)
    """Devices that changed hands, and when. Earlier reports are about the previous owner."""
    order_ended_ms: dict[str, int] = field(default_factory=dict)
    """By device: when the last order that named it ended. A report of an earlier time comes too late for a decision."""
    anomaly_emitted_ms: dict[AnomalyKey, int] = field(default_factory=dict)
    """When an alert about each anomaly was last emitted."""
    undated_ms: dict[str, int] = field(default_factory=dict)
    """Since when all reports of a device have been dated too far off to be used, mesh time, by device."""
    sensing: dict[str, SensingState] = field(default_factory=dict)
    """What was asked of each tag, by device."""
    sensing_due: list[tuple[int, str]] = field(default_factory=list)
    """Heap of the moments at which time may call for a request, each with its tag; void unless it is the tag's `due_ms`."""
    cases: dict[str, CaseState] = field(default_factory=dict)
    incidents: dict[str, OpenIncident] = field(default_factory=dict)
    """Open incident of each wearer who has one."""
    due: Agenda = field(default_factory=Agenda)
    """Moments at which a case begins or ends, or time may decide something."""
    outage: Outage | None = None
    outage_over_ms: int | None = None
    """When the last outage ended, mesh time; None if there was none."""
    silences: dict[str, int] = field(default_factory=dict)
    """Cases with a wearer who fell silent outside an outage and still is, and when, in the order of detection. Only silences up to 3
    minutes before the newest one are kept."""
    watched: set[str] = field(default_factory=set)
    """Live cases in force whose wearer has a tag; derived from `cases`."""
    grouped: set[str] = field(default_factory=set)
    """Cases with a non-empty `CaseState.grouped`; derived from `cases`."""
    cases_of: dict[str, list[str]] = field(default_factory=dict)
    """Cases that name each device, and each unit by `entries.unit_key`, sorted; derived from `cases`."""
    silent_devices: set[str] = field(default_factory=set)
    """All devices with a detected silence, and perhaps others; derived from `cases`."""

    def last_fix(self, device_ids: tuple[str, ...]) -> Fix | None:
        """The newest fix of several devices; None if no device has a fix."""
        if len(device_ids) == 1:  # nearly always
            track = self.tracks.get(device_ids[0])
            return track.recent[-1] if track and track.recent else None
        tracks = [self.tracks[device_id] for device_id in device_ids if device_id in self.tracks]
        return max((track.recent[-1] for track in tracks if track.recent), default=None)

    def last_track(self, device_ids: tuple[str, ...]) -> Track | None:
        """The track with the newest fix of several devices; None if no device has a fix."""
        if len(device_ids) == 1:  # nearly always
            track = self.tracks.get(device_ids[0])
            return track if track and track.recent else None
        tracks = [self.tracks[device_id] for device_id in device_ids if device_id in self.tracks]
        return max((track for track in tracks if track.recent), key=lambda track: track.recent[-1], default=None)

    def was_just_emitted(self, anomaly: AnomalyKey, at_ms: int) -> bool:
        """Whether an alert about this anomaly was emitted within the hour. If not, notes that it is emitted now."""
        if at_ms < self.anomaly_emitted_ms.get(anomaly, at_ms - ANOMALY_INTERVAL_MS) + ANOMALY_INTERVAL_MS:
            return True
        self.anomaly_emitted_ms[anomaly] = at_ms
        return False

    def is_new_report(self, device_id: str, report_id: str) -> bool:
        """Notes an equipment report. Returns False for a resent one, so that each report counts once."""
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
        """Devices of a case that had another owner until now."""
        return [device_id for device_id, owner in _owners(case) if self.owners.get(device_id, owner) != owner]

    def record_owners(self, case: Case) -> None:
        """Records the owners of a case's devices.

        Drops the data of a device's previous owner, which says nothing about the new one.
        """
        for device_id, owner in _owners(case):
            if self.owners.setdefault(device_id, owner) != owner:
                self.owners[device_id] = owner
                self.owned_since[device_id] = self.now_ms
                for anomaly in AnomalyKind:
                    self.anomaly_emitted_ms.pop(AnomalyKey(anomaly, (device_id,)), None)
                for by_device in (
                    self.tracks,
                    self.stays,
                    self.heard_at_ms,
                    self.undated_ms,
                    self.active_events,
                    self.ended_events,
                    self.order_ended_ms,
                    self.sensing,
                ):
                    by_device.pop(device_id, None)

    def index(self, case: Case) -> None:
        """Adds a case to the index of its devices and units."""
        for device_id in (*case.device_ids, *case.unit_keys):
            case_ids = self.cases_of.setdefault(device_id, [])
            if case.case_id not in case_ids:
                case_ids.append(case.case_id)
                case_ids.sort()

    def forget(self, case: Case) -> None:
        """Removes a case from the index of its devices and units."""
        for device_id in (*case.device_ids, *case.unit_keys):
            case_ids = self.cases_of.get(device_id, [])
            if case.case_id in case_ids:
                case_ids.remove(case.case_id)


def _owners(case: Case) -> list[tuple[str, str]]:
    """Each device of a case with its owner."""
    devices = [(device_id, f"wearer/{case.wearer_id}") for device_id in case.tag_device_ids]
    return devices + [(device_id, target.key) for target in case.targets for device_id in target.device_ids]
