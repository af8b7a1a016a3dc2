"""Ids, vendors and routes of devices as the registry parses and writes them."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidField
from services.registry.cases import translate as routes
from services.registry.domain.device_tokens import DeviceToken
from services.registry.records import translate
from tandem.common.v1 import log_pb2
from tests.support.registry import records

Route = log_pb2.DeviceRoute


@pytest.mark.parametrize("value", ["", "a b", "a/b", ".a", "a.", "a..b", "x" * 65, "é", "a\n", "*", ">"])
def test_an_id_that_cannot_be_part_of_a_nats_subject_is_rejected(value: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        translate.parse_tag(records.tag(device_id=value))
    assert refusal.value.field == "device_id"
    with pytest.raises(InvalidField) as refusal:
        translate.parse_order(records.order(person_ids=("p-1", value)))
    assert refusal.value.field == "protected_person_ids[1]"


def test_a_vendor_id_has_the_form_of_its_spiffe_id_or_is_empty() -> None:
    for vendor_id in ("", "a", "acme-2", "-", "x" * 64):
        assert translate.parse_tag(records.tag(vendor_id=vendor_id)).vendor_id == vendor_id
        assert translate.parse_device(records.device(vendor_id=vendor_id)).vendor_id == vendor_id


@pytest.mark.parametrize("value", ["Acme", "a.b", "a_b", "a b", "a/b", "x" * 65, "é", "a\n", "spiffe://vendor/a"])
def test_an_invalid_vendor_id_is_rejected(value: str) -> None:
    for parse, message in (
        (translate.parse_tag, records.tag(vendor_id=value)),
        (translate.parse_device, records.device(vendor_id=value)),
    ):
        with pytest.raises(InvalidField) as refusal:
            parse(message)  # type: ignore[arg-type]
        assert refusal.value.field == "vendor_id"


def test_a_route_names_the_owner_of_a_device_and_its_vendor() -> None:
    tag = translate.parse_tag(records.tag(vendor_id="acme"))
    assert routes.route_to_proto(tag, (0, 2), False, tokens=[DeviceToken(b"a", 7), DeviceToken(b"b", None)]) == Route(
        subject_id="w-1",
        partitions=[0, 2],
        vendor_id="acme",
        tokens=[log_pb2.DeviceToken(sha256=b"a", valid_until_ms=7), log_pb2.DeviceToken(sha256=b"b")],
        kind=log_pb2.TAG,
    )
    device = translate.parse_device(records.device(vendor_id="police"))
    assert routes.route_to_proto(device, (1,), True, tokens=[]) == Route(
        subject_id="p-1", partitions=[1], vendor_id="police", revoked=True, kind=log_pb2.PROTECTIVE_DEVICE
    )
