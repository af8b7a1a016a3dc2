"""The operators' list of tags: the interval that each keeps, whether its accuracy can be true, and nothing about where it is."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.common.errors import InvalidField, NotFound
from services.geofence.devices import DeviceList, _owned_devices, quality_of
from services.geofence.domain.entries import Case, Demand, Ring, Target
from services.geofence.domain.geometry import PERSON
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.state import CaseState, State
from tandem.common.v1 import access_pb2
from tandem.geofence.v1 import geofence_pb2

T0 = 1_783_300_000_000


def track(every_s: int, stated_m: float, true_m: float, count: int = 40) -> Track:
    """Fixes of a standing tag whose errors have a standard deviation of `true_m` along each axis."""
    rng, built = random.Random(every_s), Track()
    for i in range(count):
        at_ms = T0 + i * every_s * 1000
        x_mm, y_mm = (round(rng.gauss(0, true_m * 1000)) for _ in range(2))
        built.add(Fix(at_ms, at_ms, str(i), x_mm, y_mm, 0, round(stated_m * 1000)))
    return built


def state(**tracks: Track) -> State:
    """A state in which each track but `phone` is that of a tag of a case."""
    built = State(0)
    for device_id, known in tracks.items():
        built.tracks[device_id] = known
        if device_id == "phone":
            continue
        case = Case(
            case_id=f"case-{device_id}",
            version=1,
            order_id="order",
            wearer_id="him",
            tag_device_ids=(device_id,),
            targets=(Target("her", is_person=True, device_ids=("phone",), shape=PERSON),),
            rings=(Ring(100_000, Demand.RESPOND),),
            valid_from_ms=0,
            valid_until_ms=1,
        )
        built.cases[case.case_id] = CaseState(case)
    return built


def listed(*states: State, partitions: int = 1, **request: Any) -> geofence_pb2.ListDevicesResponse:
    evaluators = {p: SimpleNamespace(state=each) for p, each in enumerate(states)}
    devices = DeviceList(cast(Any, evaluators), partitions)
    return asyncio.run(devices.page(geofence_pb2.ListDevicesRequest(**request)))


def ids(response: geofence_pb2.ListDevicesResponse) -> list[str]:
    return [row.device_id for row in response.devices]


def test_a_tag_is_slow_from_150_s_on_and_its_accuracy_is_contradicted_beyond_twice_the_stated_one() -> None:
    slow = track(150, 10, 5)
    brisk = track(149, 10, 5)
    boaster = track(30, 5, 20)
    response = listed(state(slow=slow, brisk=brisk, boaster=boaster, new=track(30, 5, 20, count=3)))
    rows = {row.device_id: row for row in response.devices}
    assert [rows[id_].kept_interval_s for id_ in ("slow", "brisk", "boaster", "new")] == [150, 149, 30, 0]
    assert {id_ for id_, row in rows.items() if row.slow} == {"slow"}
    assert {id_ for id_, row in rows.items() if row.accuracy_contradicted} == {"boaster"}
    assert rows["boaster"].stated_accuracy_m == 5 and 20 < rows["boaster"].observed_accuracy_m < 45
    assert not rows["new"].HasField("observed_accuracy_m")


def test_only_the_conspicuous_are_listed_page_by_page_and_no_phone() -> None:
    fine = {f"t{i}": track(30, 10, 5, count=12) for i in range(5)}
    known = state(**fine, t9=track(200, 10, 5), phone=track(200, 10, 5))
    pages, token = [], ""
    while True:
        response = listed(known, only_conspicuous=True, page_size=2, page_token=token)
        pages.append(ids(response))
        token = response.next_page_token
        if not token:
            break
    assert pages == [[], [], ["t9"]]
    assert ids(listed(known)) == [*fine, "t9"]


def test_the_partitions_that_others_fold_are_named() -> None:
    response = listed(state(a=track(30, 10, 5)), state(b=track(30, 10, 5)), partitions=4)
    assert (ids(response), list(response.missing_partitions)) == (["a", "b"], [2, 3])


def test_one_device_is_listed_whatever_it_keeps_and_an_unknown_one_or_a_phone_is_not_found() -> None:
    known = state(a=track(30, 10, 5), phone=track(30, 10, 5))
    assert ids(listed(known, device_id="a", only_conspicuous=True)) == ["a"]
    for device_id in ("b", "phone"):
        with pytest.raises(NotFound, match="device_id"):
            listed(known, device_id=device_id)


@pytest.mark.parametrize(
    ("field", "request_"),
    [("page_size", {"page_size": 5001}), ("page_token", {"page_token": "a b"}), ("device_id", {"device_id": "a b"})],
)
def test_a_wrong_request_is_refused_by_its_field(field: str, request_: dict[str, Any]) -> None:
    with pytest.raises(InvalidField) as refused:
        listed(state(), **request_)
    assert refused.value.field == field


def test_no_field_says_where_or_whose_a_tag_is_and_only_operators_may_ask() -> None:
    fields = {field.name for field in geofence_pb2.TagQuality.DESCRIPTOR.fields}
    assert not [
        name for name in fields if any(part in name for part in ("lat", "lon", "wearer", "case", "order", "name"))
    ]
    method = geofence_pb2.DESCRIPTOR.services_by_name["GeofenceService"].methods_by_name["ListDevices"]
    assert list(method.GetOptions().Extensions[access_pb2.allowed_roles]) == [access_pb2.ROLE_OPERATOR]


def test_a_device_of_an_ended_case_has_no_state_and_one_that_changed_hands_is_its_new_owners() -> None:
    known = state(kept=track(30, 10, 5), returned=track(30, 10, 5))
    before = known.cases["case-kept"]
    known.cases["earlier"] = CaseState(replace(before.case, case_id="earlier", wearer_id="another"), ended=True)
    known.cases["case-returned"].ended = True
    owned = dict(_owned_devices(known))
    assert owned["kept"].subject_id == "him" and owned["phone"].subject_id == "her" and "returned" not in owned


def test_measuring_leaves_the_track_as_it_is() -> None:
    """The state of an evaluator must not depend on who asks."""
    measured, untouched = track(30, 5, 20), track(30, 5, 20)
    quality_of(measured)
    assert (measured, measured.floor) == (untouched, None)
