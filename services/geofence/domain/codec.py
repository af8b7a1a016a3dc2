"""The fold's state as bytes and back, for checkpoints and their keyed hash. The same entries give equal bytes on every evaluator."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from typing import Any, TypeVar

from services.common.privacy.notices import NoticeGround
from services.geofence.domain.alerts import AnomalyKind
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors.pipeline import PARTS
from services.geofence.domain.entries import (
    FOLD_VERSION,
    Case,
    Demand,
    Encounter,
    EquipmentKind,
    Exercise,
    GoodCause,
    Removal,
    Ring,
    Rules,
    TagDuty,
    Target,
    UnitPlace,
    UnitPlaceKind,
)
from services.geofence.domain.geometry import PERSON, Disc, PlanePolygon, Shape
from services.geofence.domain.kinematics.fixes import PackedFixes
from services.geofence.domain.kinematics.rings import Account, RingState, Stretch
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.state import (
    WEARER,
    Agenda,
    AnomalyKey,
    CaseState,
    Due,
    EndedEvent,
    EventKey,
    EventTime,
    GroupedKey,
    OpenIncident,
    Outage,
    RingKey,
    SensingState,
    State,
    UnitStay,
)

_MAGIC = b"TANDEM STATE 1\n"
"""First bytes of an encoded state: the format. A state of another format is unreadable."""
_LENGTH_BYTES = 8
_CHECK = -1
"""Value in `due` instead of a case version: at that moment the case is only checked; it neither begins nor ends."""
T = TypeVar("T")


class UnreadableState(Exception):
    """The bytes aren't a state of this fold version. Fold the log from its start instead."""


def encode(state: State) -> bytes:
    """Encodes a state: the format, the length of what follows as canonical JSON, the JSON, and the packed fixes of each device in the
    order of the tracks."""
    packed = {device_id: track.all_packed() for device_id, track in state.tracks.items()}
    content = json.dumps(
        {
            "fold_version": FOLD_VERSION,
            "partition": state.partition,
            "log_id": state.log_id,
            "sequence": state.sequence,
            "now_ms": state.now_ms,
            "clock": [state.clock_rate, state.clock_anchor_ms],
            "log_version_ms": state.log_version_ms,
            "rules": list(astuple(state.rules)),
            "rules_since_ms": state.rules_since_ms or 0,
            # In the order of the first reports, in which `retention` drops what is old; keys would be sorted.
            "tracks": [
                [device_id, track.ahead, track.is_truncated, track.began_ms, _fixes(packed[device_id])]
                for device_id, track in state.tracks.items()
            ],
            "stays": state.stays,
            "distrusted_units": state.distrusted_units,
            "heard_at_ms": state.heard_at_ms,
            # Pairs keep the order of arrival; keys would be sorted.
            "said": {
                device_id: list(equipment_reports.items())
                for device_id, equipment_reports in state.equipment_reports.items()
            },
            "standing": state.active_events,
            "over": state.ended_events,
            "owners": state.owners,
            "owned_since": state.owned_since,
            "over_from_ms": state.order_ended_ms,
            "odd_ms": {
                " ".join((key.anomaly.value, *key.about)): at_ms for key, at_ms in state.anomaly_emitted_ms.items()
            },
            "undated_ms": state.undated_ms,
            "sensing": {device_id: _sensing(sensing) for device_id, sensing in state.sensing.items()},
            "sensing_due": sorted(state.sensing_due),
            "cases": {case_id: _case_state(case_state) for case_id, case_state in state.cases.items()},
            "incidents": {
                wearer_id: [incident.incident_id, incident.case_ids] for wearer_id, incident in state.incidents.items()
            },
            "due": [_due(state, due) for due in state.due],
            "outage": astuple(state.outage) if state.outage else None,
            "outage_over_ms": state.outage_over_ms or 0,
            "silences": list(state.silences.items()),
        },
        separators=(",", ":"),
        sort_keys=True,
    ).encode()
    words = (part for fixes in packed.values() if fixes for part in (fixes.low_words, fixes.high_words))
    return b"".join((_MAGIC, len(content).to_bytes(_LENGTH_BYTES, "little"), content, *words))


def state_digest(state: State) -> bytes:
    """A digest of the open episodes and the size of the state: small, so that evaluators can compare it often."""
    return json.dumps(
        [
            state.sequence,
            state.now_ms,
            {case_id: _case_state(case) for case_id, case in state.cases.items() if case.episode_id},
            {wearer_id: incident.incident_id for wearer_id, incident in state.incidents.items()},
            len(state.cases),
            sum([track.older_count + len(track.recent) for track in state.tracks.values()]),
        ],
        sort_keys=True,
    ).encode()


def decode(data: bytes) -> State:
    """Decodes a state of `encode`. Raises UnreadableState if the bytes are damaged or of another fold version."""
    try:
        if not data.startswith(_MAGIC):
            raise UnreadableState("the state has another format: fold the log from its start")
        first = len(_MAGIC) + _LENGTH_BYTES
        end = first + int.from_bytes(data[len(_MAGIC) : first], "little")
        content = json.loads(data[first:end])
        if content["fold_version"] != FOLD_VERSION:
            raise UnreadableState(
                f"the state has fold version {content['fold_version']}, this is {FOLD_VERSION}: fold the log from its start"
            )
        state = State(
            partition=content["partition"],
            log_id=content["log_id"],
            sequence=content["sequence"],
            now_ms=content["now_ms"],
            clock_rate=content["clock"][0],
            clock_anchor_ms=content["clock"][1],
            log_version_ms=content["log_version_ms"],
            rules=_from_values(Rules, content["rules"]),
            rules_since_ms=content["rules_since_ms"] or None,
            tracks=_to_tracks(content["tracks"], memoryview(data)[end:]),
            stays={device_id: UnitStay._make(values) for device_id, values in content["stays"].items()},
            distrusted_units=content["distrusted_units"],
            heard_at_ms=content["heard_at_ms"],
            equipment_reports={
                device_id: dict(equipment_reports) for device_id, equipment_reports in content["said"].items()
            },
            active_events={
                device_id: {event: EventTime._make(time) for event, time in events.items()}
                for device_id, events in content["standing"].items()
            },
            ended_events={
                device_id: {
                    event: EndedEvent(EventTime._make(time), emitted) for event, (time, emitted) in events.items()
                }
                for device_id, events in content["over"].items()
            },
            owners=content["owners"],
            owned_since=content["owned_since"],
            order_ended_ms=content["over_from_ms"],
            anomaly_emitted_ms={_to_anomaly_key(*key.split(" ")): at_ms for key, at_ms in content["odd_ms"].items()},
            undated_ms=content["undated_ms"],
            sensing={device_id: _from_values(SensingState, values) for device_id, values in content["sensing"].items()},
            sensing_due=[(at_ms, device_id) for at_ms, device_id in content["sensing_due"]],
            cases={case_id: _to_case_state(fields) for case_id, fields in content["cases"].items()},
            incidents={
                wearer_id: _from_values(OpenIncident, values) for wearer_id, values in content["incidents"].items()
            },
            due=Agenda(Due(at_ms, case_id, version != _CHECK) for at_ms, case_id, version in content["due"]),
            outage=_from_values(Outage, content["outage"]) if content["outage"] else None,
            outage_over_ms=content["outage_over_ms"] or None,
            silences=dict(content["silences"]),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UnreadableState(f"{type(error).__name__}: {error}") from error
    for case_id, case_state in state.cases.items():
        if case_state.grouped:
            state.grouped.add(case_id)
        if not case_state.ended:
            state.index(case_state.case)
            is_live = case_state.case.is_live
            if is_live and WEARER in case_state.awaited_from_ms and case_state.case.tag_device_ids:
                state.watched.add(case_id)
            for key in (*([WEARER] if case_state.silent else []), *case_state.lost):
                state.silent_devices.update(case_state.devices(key))
    return state


def _fixes(packed: PackedFixes | None) -> list[Any] | None:
    """The part of packed fixes that is JSON: the sizes of the others, and the report ids."""
    return [len(packed.low_words), len(packed.high_words), packed.report_ids] if packed else None


def _to_tracks(content: list[Any], words: memoryview) -> dict[str, Track]:
    tracks, at = {}, 0
    for device_id, ahead, is_truncated, began_ms, fixes in content:  # in the order of the words
        track = tracks[device_id] = Track(ahead=ahead, is_truncated=is_truncated, began_ms=began_ms)
        if fixes is not None:
            low, high, ids = fixes
            middle, end = at + low, at + low + high
            report_ids = ids if isinstance(ids, str) else tuple(ids)
            track.hold(PackedFixes(bytes(words[at:middle]), bytes(words[middle:end]), report_ids))
            at = end
    if at != len(words):
        raise ValueError("the packed fixes don't have the length that the state says")
    return tracks


def _due(state: State, due: Due) -> list[Any]:
    return [due.at_ms, due.case_id, state.cases[due.case_id].case.version if due.is_boundary else _CHECK]


def _sensing(sensing: SensingState) -> list[Any]:
    asked = [sensing.basis_s, sensing.renew_ms, sensing.is_next_uncaused, sensing.due_ms, sensing.change_ms]
    seen = [sensing.seen_ms, sensing.evaluated_ms, sensing.located_ms, sensing.located]
    return [*asked, *seen, sensing.asked_s, sensing.obeyed_ms]


def _to_anomaly_key(anomaly: str, *about: str) -> AnomalyKey:
    return AnomalyKey(AnomalyKind(anomaly), about)


def _case_state(case_state: CaseState) -> dict[str, Any]:
    case = case_state.case
    return {
        "case": [
            case.case_id,
            case.version,
            case.order_id,
            case.wearer_id,
            case.tag_device_ids,
            [[t.target_id, t.is_person, t.device_ids, _of_shape(t.shape), t.is_named] for t in case.targets],
            [[ring.radius_mm, ring.action] for ring in case.rings],
            case.valid_from_ms,
            case.valid_until_ms,
            [_of_encounter(encounter) for encounter in case.encounters],
            case.exercise,
            case.notice_ground.value if case.notice_ground else "",
            case.police_must_check,
            astuple(case.tag_duty) if case.tag_duty else None,
            [astuple(removal) for removal in case.removals],
            [_of_unit(unit) for unit in case.units],
        ],
        "rings": [[*key, *_ring_state(ring)] for key, ring in sorted(case_state.rings.items())],
        "episode_id": case_state.episode_id,
        "raised": {f"{key.event.value} {key.device_id}": at_ms for key, at_ms in case_state.raised.items()},
        "ended": case_state.ended,
        "awaited_from_ms": case_state.awaited_from_ms,
        "silent": case_state.silent,
        "lost": case_state.lost,
        "near": case_state.near,
        "unseen": case_state.unseen,
        "grouped": [f"{key.detection.value} {key.about}" for key in case_state.grouped],
        "amend_ms": case_state.amend_ms,
        "wake_ms": case_state.next_check_ms or 0,
        **{part.name: part.encode(part.all_in(case_state).get(part.name, part.new())) for part in PARTS},
    }


def _ring_state(ring: RingState) -> list[Any]:
    closed = [list(astuple(account)) for account in ring.closed]
    opened = [ring.bound_ms, ring.since_ms, ring.inside, ring.min_mm, ring.entered_mm, ring.muted]
    return [*opened, ring.floor_ms, ring.opened_ms, ring.late_ms or 0, closed]


def _to_ring_state(content: list[Any]) -> RingState:
    bound_ms, since_ms, inside, min_mm, entered_mm, muted, floor_ms, opened_ms, late_ms, closed = content
    state = RingState(
        bound_ms=bound_ms,
        since_ms=since_ms,
        inside=_to_stretches(inside),
        min_mm=min_mm,
        entered_mm=entered_mm,
        muted=muted,
        floor_ms=floor_ms,
        opened_ms=opened_ms,
        late_ms=late_ms or None,
    )
    state.closed = [_to_account(account) for account in closed]
    return state


def _from_values(cls: type[T], values: Sequence[Any]) -> T:
    """A dataclass from the values of its fields, in their order. Fields without a value get their default."""
    names = (field.name for field in fields(cls))  # type: ignore[arg-type]  # typeshed can't say that T is a dataclass
    return cls(**dict(zip(names, values, strict=False)))


def _to_account(content: list[Any]) -> Account:
    account = _from_values(Account, content)
    account.spans, account.inside = _to_stretches(account.spans), _to_stretches(account.inside)
    account.final_inside = _to_stretches(account.final_inside)
    return account


def _to_stretches(content: Iterable[Sequence[int]]) -> list[Stretch]:
    return [(from_ms, to_ms) for from_ms, to_ms in content]


def _to_case_state(content: dict[str, Any]) -> CaseState:
    case_id, version, order_id, wearer_id, tags, targets, rings, valid_from_ms, valid_until_ms, *others = content[
        "case"
    ]
    allowed, exercise, notice_ground, police_must_check, tag_duty, removals, units = others
    case_state = CaseState(
        case=Case(
            case_id=case_id,
            version=version,
            order_id=order_id,
            wearer_id=wearer_id,
            tag_device_ids=tuple(tags),
            targets=tuple(
                Target(
                    target_id=target_id,
                    is_person=is_person,
                    device_ids=tuple(device_ids),
                    shape=_to_shape(shape),
                    is_named=is_named,
                )
                for target_id, is_person, device_ids, shape, is_named in targets
            ),
            rings=tuple(Ring(radius_mm, Demand(action)) for radius_mm, action in rings),
            valid_from_ms=valid_from_ms,
            valid_until_ms=valid_until_ms,
            encounters=tuple(
                Encounter(
                    encounter_id=encounter_id,
                    from_ms=from_ms,
                    until_ms=until_ms,
                    places=tuple(map(_to_shape, places)),
                    daily_from_s=daily_from_s,
                    daily_until_s=daily_until_s,
                )
                for encounter_id, from_ms, until_ms, places, daily_from_s, daily_until_s in allowed
            ),
            exercise=Exercise(exercise),
            notice_ground=NoticeGround(notice_ground) if notice_ground else None,
            police_must_check=police_must_check,
            tag_duty=_to_tag_duty(*tag_duty) if tag_duty else None,
            removals=tuple(_from_values(Removal, removal) for removal in removals),
            units=tuple(map(_to_unit, units)),
        ),
        rings={RingKey(key, radius_mm): _to_ring_state(ring_state) for key, radius_mm, *ring_state in content["rings"]},
        episode_id=content["episode_id"],
        raised={_to_event_key(*key.split(" ")): at_ms for key, at_ms in content["raised"].items()},
        ended=content["ended"],
        awaited_from_ms=content["awaited_from_ms"],
        silent=Demand(content["silent"]) if content["silent"] is not None else None,
        lost=content["lost"],
        near={key: Demand(demand) for key, demand in content["near"].items()},
        unseen=content["unseen"],
        grouped=[_to_grouped_key(*key.split(" ")) for key in content["grouped"]],
        amend_ms=content["amend_ms"],
        next_check_ms=content["wake_ms"] or None,
    )
    for part in PARTS:
        part.all_in(case_state)[part.name] = part.decode(content[part.name])
    return case_state


def _to_event_key(event: str, device_id: str) -> EventKey:
    return EventKey(EquipmentKind(event), device_id)


def _to_grouped_key(detection: str, about: str) -> GroupedKey:
    return GroupedKey(Detection(detection), about)


def _to_tag_duty(fit_by_ms: int, refused_ms: int | None, good_causes: Sequence[Sequence[Any]]) -> TagDuty:
    """The duty to wear a tag with these values."""
    causes = (
        GoodCause(cause_id=cause_id, from_ms=from_ms, until_ms=until_ms) for cause_id, from_ms, until_ms in good_causes
    )
    return TagDuty(fit_by_ms, refused_ms, tuple(causes))


def _of_encounter(encounter: Encounter) -> list[Any]:
    """The values of an authorised encounter."""
    return [
        encounter.encounter_id,
        encounter.from_ms,
        encounter.until_ms,
        list(map(_of_shape, encounter.places)),
        encounter.daily_from_s,
        encounter.daily_until_s,
    ]


def _of_unit(unit: UnitPlace) -> list[Any]:
    """The values of a home unit or beacon."""
    shown = [unit.unit_id, unit.kind, unit.holder, unit.place.centre, unit.place.radius_mm]
    return [*shown, unit.installed_from_ms, unit.installed_until_ms, unit.interval_ms]


def _to_unit(values: list[Any]) -> UnitPlace:
    """The home unit or beacon with these values."""
    unit_id, kind, holder, centre, radius_mm, from_ms, until_ms, interval_ms = values
    return UnitPlace(
        unit_id=unit_id,
        kind=UnitPlaceKind(kind),
        holder=holder,
        place=Disc(tuple(centre), radius_mm),
        installed_from_ms=from_ms,
        installed_until_ms=until_ms,
        interval_ms=interval_ms,
    )


def _of_shape(shape: Shape) -> list[Any]:
    """The values of the shape of a target or place."""
    if isinstance(shape, Disc):
        return [shape.centre, shape.radius_mm]
    return [shape.origin, shape.east, shape.north, shape.sides, shape.radius_mm]


def _to_shape(values: list[Any]) -> Shape:
    """The shape with these values."""
    if len(values) == 2:
        disc = Disc(tuple(values[0]), values[1])
        return PERSON if disc == PERSON else disc
    origin, east, north, sides, radius_mm = values
    pairs = tuple(((x0, y0), (x1, y1)) for (x0, y0), (x1, y1) in sides)
    return PlanePolygon(origin=tuple(origin), east=tuple(east), north=tuple(north), sides=pairs, radius_mm=radius_mm)
