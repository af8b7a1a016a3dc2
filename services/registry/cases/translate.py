"""Translation of joint cases, routes and contacts to messages for the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from services.registry.domain.cases import JointCase
from services.registry.domain.device_tokens import DeviceToken
from services.registry.domain.records import Contact, Device, PersonUnit, PresenceUnit, RoutedDevice, Tag, WearerUnit
from services.registry.domain.wearing import WearingDuty
from services.registry.records import places
from services.registry.records.translate import ACTIONS, LANGUAGES, encounter_to_proto, identifier_sha256, unit_to_proto
from tandem.common.v1 import contact_pb2, exercise_pb2, geometry_pb2, log_pb2, notice_pb2, tag_duty_pb2

_DEMANDS = {action: demand for demand, action in ACTIONS.items()}
_LANGUAGE_NUMBERS = {language: contact_pb2.Language.ValueType(number) for number, language in LANGUAGES.items()}


def contact_to_proto(contact: Contact) -> contact_pb2.Contact:
    """Contact of a protected person as a message, which is then sealed for the warning leg."""
    return contact_pb2.Contact(
        handle=contact.handle,
        language=_LANGUAGE_NUMBERS[contact.language] if contact.language else contact_pb2.LANGUAGE_UNSPECIFIED,
        duress_choice=contact.duress_choice,
    )


def case_to_proto(case: JointCase, version: int) -> log_pb2.CaseSnapshot:
    """Snapshot of a joint case for the log."""
    return log_pb2.CaseSnapshot(
        case_id=case.case_id,
        version=version,
        order_id=case.order_id,
        wearer_id=case.wearer_id,
        tag_device_ids=case.tag_device_ids,
        persons=[
            log_pb2.ProtectedTarget(
                person_id=person.person_id,
                device_ids=person.device_ids,
                presence_units=map(unit_to_proto, person.units),
            )
            for person in case.persons
        ],
        places=[places.place_to_proto(place) for place in case.places],
        rings=[geometry_pb2.Ring(radius_m=ring.radius_m, action=_DEMANDS[ring.action]) for ring in case.rings],
        valid_from_ms=case.valid_from_ms,
        valid_until_ms=case.valid_until_ms or 0,
        encounters=map(encounter_to_proto, case.encounters),
        exercise=exercise_pb2.Exercise.Value(case.exercise.name)
        if case.exercise
        else exercise_pb2.EXERCISE_UNSPECIFIED,
        notice_ground=notice_pb2.NoticeGround.Value(case.notice_ground.value)
        if case.notice_ground
        else notice_pb2.NOTICE_GROUND_UNSPECIFIED,
        police_must_check=case.police_must_check,
        tag_duty=_tag_duty_to_proto(case.tag_duty) if case.tag_duty else None,
        removals=[
            tag_duty_pb2.TagRemoval(
                removal_id=removal.record_id,
                device_id=removal.device_id,
                from_ms=removal.from_ms,
                until_ms=removal.until_ms,
            )
            for removal in case.removals
        ],
        presence_units=map(unit_to_proto, case.units),
    )


def _tag_duty_to_proto(duty: WearingDuty) -> tag_duty_pb2.TagDuty:
    return tag_duty_pb2.TagDuty(
        fit_by_ms=duty.fit_by_ms,
        refused_at_ms=duty.refused_ms or 0,
        good_causes=[
            tag_duty_pb2.GoodCause(cause_id=cause.record_id, from_ms=cause.from_ms, until_ms=cause.until_ms)
            for cause in duty.good_causes
        ],
    )


def route_to_proto(
    device: RoutedDevice, partitions: Sequence[int], revoked: bool, *, tokens: Sequence[DeviceToken]
) -> log_pb2.DeviceRoute:
    """Route of a tag, protective device, home unit or beacon."""
    match device:
        case Tag():
            subject_id, kind = device.wearer_id, log_pb2.DeviceKind.TAG
        case Device():
            subject_id, kind = device.person_id, log_pb2.DeviceKind.PROTECTIVE_DEVICE
        case WearerUnit():
            subject_id, kind = device.wearer_id, log_pb2.DeviceKind.PRESENCE_UNIT
        case PersonUnit():
            subject_id, kind = device.person_id, log_pb2.DeviceKind.PRESENCE_UNIT
        case _:
            assert_never(device)
    return log_pb2.DeviceRoute(
        subject_id=subject_id,
        partitions=partitions,
        vendor_id=device.vendor_id,
        tokens=[log_pb2.DeviceToken(sha256=token.sha256, valid_until_ms=token.valid_until_ms or 0) for token in tokens],
        revoked=revoked,
        kind=kind,
        identifier_sha256=identifier_sha256(device) if isinstance(device, PresenceUnit) else b"",
    )
