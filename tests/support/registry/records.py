"""Valid records as the agencies put them. All people are fictitious."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from tandem.common.v1 import encounter_pb2, geometry_pb2, presence_pb2
from tandem.registry.v1 import registry_pb2

NUMBER = "800101-1234567"
NAME = "홍길동"
BIRTH_DATE = "1980-01-01"
VENDOR_ID = "test"


def wearer(wearer_id: str = "w-1", national_id: str = NUMBER, version: int = 1) -> registry_pb2.Wearer:
    """A wearer."""
    return registry_pb2.Wearer(
        wearer_id=wearer_id, national_id=national_id, name=NAME, birth_date=BIRTH_DATE, source_version=version
    )


def tag(
    device_id: str = "tag-1", wearer_id: str = "w-1", version: int = 1, vendor_id: str = VENDOR_ID
) -> registry_pb2.Tag:
    """A tag."""
    return registry_pb2.Tag(device_id=device_id, wearer_id=wearer_id, source_version=version, vendor_id=vendor_id)


def person(person_id: str = "p-1", version: int = 1) -> registry_pb2.ProtectedPerson:
    """A protected person."""
    return registry_pb2.ProtectedPerson(person_id=person_id, name="성춘향", source_version=version)


def device(
    device_id: str = "app-1", person_id: str = "p-1", version: int = 1, vendor_id: str = VENDOR_ID
) -> registry_pb2.Device:
    """A protective device."""
    return registry_pb2.Device(device_id=device_id, person_id=person_id, source_version=version, vendor_id=vendor_id)


def circle(place_id: str = "home", radius_m: float = 50.0) -> geometry_pb2.Place:
    """A circular place."""
    shape = geometry_pb2.Circle(lat_deg=37.5, lon_deg=127.0, radius_m=radius_m)
    return geometry_pb2.Place(place_id=place_id, circle=shape)


def polygon(
    *corners: tuple[float, float], place_id: str = "school", holes: Sequence[Sequence[tuple[float, float]]] = ()
) -> geometry_pb2.Place:
    """A polygonal place; the corners of its outline and its holes are pairs of latitude and longitude."""
    area = geometry_pb2.Polygon(
        vertices=_points(corners), holes=[geometry_pb2.Hole(vertices=_points(hole)) for hole in holes]
    )
    return geometry_pb2.Place(place_id=place_id, polygon=area)


def _points(corners: Sequence[tuple[float, float]]) -> list[geometry_pb2.Point]:
    return [geometry_pb2.Point(lat_deg=lat_deg, lon_deg=lon_deg) for lat_deg, lon_deg in corners]


def encounter(encounter_id: str = "e-1") -> encounter_pb2.Encounter:
    """An authorised encounter in court for one hour in November 2023, without places."""
    message = encounter_pb2.Encounter(
        encounter_id=encounter_id, reason=encounter_pb2.COURT_DATE, until=Timestamp(seconds=1_700_003_600)
    )
    getattr(message, "from").seconds = 1_700_000_000
    return message


def order(
    order_id: str = "o-1", person_ids: tuple[str, ...] = ("p-1",), national_id: str = NUMBER, version: int = 1
) -> registry_pb2.Order:
    """A restraining order, valid from September 2020 until 2096."""
    return registry_pb2.Order(
        order_id=order_id,
        respondent=registry_pb2.Respondent(national_id=national_id, name=NAME, birth_date=BIRTH_DATE),
        protected_person_ids=person_ids,
        places=[circle()],
        valid_from=Timestamp(seconds=1_600_000_000),
        valid_until=Timestamp(seconds=4_000_000_000),
        source_version=version,
    )


def unlinked() -> tuple[registry_pb2.Wearer, registry_pb2.ProtectedPerson, registry_pb2.Order]:
    """A wearer, a protected person and an order against somebody else, so that no joint case comes of them."""
    return wearer(), person(), order(national_id="810101-1234560")


def unit(
    unit_id: str = "unit-1", wearer_id: str = "w-1", person_id: str = "", version: int = 1
) -> registry_pb2.PresenceUnit:
    """A home unit of a wearer since September 2020; with `person_id` a beacon of a protected person."""
    return registry_pb2.PresenceUnit(
        unit_id=unit_id,
        wearer_id="" if person_id else wearer_id,
        person_id=person_id,
        source_version=version,
        kind=presence_pb2.PRESENCE_UNIT_KIND_BLUETOOTH_BEACON
        if person_id
        else presence_pb2.PRESENCE_UNIT_KIND_HOME_UNIT,
        place=geometry_pb2.Circle(lat_deg=37.52, lon_deg=127.0, radius_m=30),
        installed_from=Timestamp(seconds=1_600_000_000),
        vendor_id="" if person_id else VENDOR_ID,
        identifier="02:00:5E:10:00:01" if person_id else "",
    )
