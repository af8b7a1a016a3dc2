"""Translation of authorised encounters between messages and domain. Errors as in translate.py."""

from __future__ import annotations

from collections.abc import Sequence

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.registry.domain import AllowedEncounter, EncounterReason
from services.registry.records import places as translate_places
from tandem.common.v1 import encounter_pb2

ENCOUNTERS_MAX = 50
ENCOUNTER_PLACES_MAX = 20
ENCOUNTER_VERTICES_MAX = 10_000
"""Maximum number of vertices in all encounters of an order. The test for crossing sides is slow and blocks other calls."""
DAY_S = 86_400

_REASONS = {
    encounter_pb2.COURT_DATE: EncounterReason.COURT_DATE,
    encounter_pb2.POLICE_STATION: EncounterReason.POLICE_STATION,
    encounter_pb2.COMMUTE: EncounterReason.COMMUTE,
}
_NUMBERS = {reason: number for number, reason in _REASONS.items()}


def parse_encounters(
    messages: Sequence[encounter_pb2.Encounter], valid_from_ms: int, valid_until_ms: int | None
) -> tuple[AllowedEncounter, ...]:
    """Parse the encounters of an order that is valid between these moments, or without an end. Raises InvalidField."""
    fields.at_most("encounters", messages, ENCOUNTERS_MAX)
    polygons = [place.polygon for message in messages for place in message.places]
    corners = sum(len(polygon.vertices) + sum(len(hole.vertices) for hole in polygon.holes) for polygon in polygons)
    if corners > ENCOUNTER_VERTICES_MAX:
        raise InvalidField("encounters", f"must hold at most {ENCOUNTER_VERTICES_MAX} vertices in all")
    encounters = tuple(_encounter(f"encounters[{n}]", message) for n, message in enumerate(messages))
    encounter_ids = [encounter.encounter_id for encounter in encounters]
    translate_places.all_different("encounters[{}].encounter_id", encounter_ids)
    for n, encounter in enumerate(encounters):
        if encounter.from_ms < valid_from_ms:
            raise InvalidField(f"encounters[{n}].from", "must not be earlier than the order's valid_from")
        if valid_until_ms is not None and encounter.until_ms > valid_until_ms:
            raise InvalidField(f"encounters[{n}].until", "must not be later than the order's valid_until")
    return encounters


def _encounter(field: str, msg: encounter_pb2.Encounter) -> AllowedEncounter:
    encounter_id = fields.required_id(f"{field}.encounter_id", msg.encounter_id)
    reason = _REASONS.get(msg.reason)
    if reason is None:
        raise InvalidField(f"{field}.reason", "must be COURT_DATE, POLICE_STATION or COMMUTE")
    from_ms = fields.moment(f"{field}.from", getattr(msg, "from"), msg.HasField("from"))
    until_ms = fields.moment(f"{field}.until", msg.until, msg.HasField("until"))
    if until_ms <= from_ms:
        raise InvalidField(f"{field}.until", "must be later than from")
    for name, second in (("daily_from_s", msg.daily_from_s), ("daily_until_s", msg.daily_until_s)):
        if not 0 <= second <= DAY_S:
            raise InvalidField(f"{field}.{name}", f"must be from 0 to {DAY_S}")
    if msg.daily_until_s <= msg.daily_from_s and (msg.daily_from_s or msg.daily_until_s):
        raise InvalidField(f"{field}.daily_until_s", "must be later than daily_from_s; both 0 mean all day")
    places = translate_places.parse_places(f"{field}.places", msg.places, ENCOUNTER_PLACES_MAX)
    return AllowedEncounter(
        encounter_id=encounter_id,
        reason=reason,
        from_ms=from_ms,
        until_ms=until_ms,
        places=places,
        daily_from_s=msg.daily_from_s,
        daily_until_s=msg.daily_until_s,
    )


def encounter_to_proto(encounter: AllowedEncounter) -> encounter_pb2.Encounter:
    """An authorised encounter as a message for the log."""
    message = encounter_pb2.Encounter(
        encounter_id=encounter.encounter_id,
        reason=_NUMBERS[encounter.reason],
        until=times.to_timestamp(encounter.until_ms),
        places=map(translate_places.place_to_proto, encounter.places),
        daily_from_s=encounter.daily_from_s,
        daily_until_s=encounter.daily_until_s,
    )
    # `from` is a keyword of Python, so the field has no attribute syntax.
    getattr(message, "from").CopyFrom(times.to_timestamp(encounter.from_ms))
    return message
