"""Diagnosis of bytes that aren't a valid protobuf message."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from services.common.rpc import wire
from tandem.registry.v1 import registry_pb2
from tests.support.registry import records

ORDER = registry_pb2.PutOrderRequest.DESCRIPTOR
SURROGATE = b"\xed\xa0\x80"


def request() -> registry_pb2.PutOrderRequest:
    message = records.order(person_ids=("p-1", "p-2"))
    message.places.append(records.circle("second"))
    message.respondent.name = "???"
    return registry_pb2.PutOrderRequest(order=message)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"???", "order.respondent.name"),
        (b"p-2", "order.protected_person_ids[1]"),
        (b"second", "order.places[1].place_id"),
        (b"o-1", "order.order_id"),
    ],
)
def test_a_field_with_invalid_utf8_is_named(text: bytes, path: str) -> None:
    raw = request().SerializeToString().replace(text, SURROGATE * (len(text) // 3))
    with pytest.raises(DecodeError):
        registry_pb2.PutOrderRequest.FromString(raw)
    assert wire.fault(ORDER, raw) == (path, "isn't text in UTF-8")


@pytest.mark.parametrize("raw", [b"\x0a\xff", b"\x0a", b"\xff" * 20, b"\x0b", request().SerializeToString()[:-3]])
def test_bytes_that_are_no_message_name_no_field(raw: bytes) -> None:
    assert wire.fault(ORDER, raw) == ("", "the request isn't a message of this method")


@pytest.mark.parametrize(("before", "named"), [(wire.MAX_FIELDS - 10, True), (500_000, False)])
def test_a_field_is_named_only_within_the_first_fields(before: int, named: bool) -> None:
    raw = b"\x78\x00" * before + request().SerializeToString().replace(b"o-1", SURROGATE)
    with pytest.raises(DecodeError):
        registry_pb2.PutOrderRequest.FromString(raw)
    assert bool(wire.fault(ORDER, raw)[0]) is named


@given(st.binary(max_size=200))
def test_the_diagnosis_ends_for_any_bytes(raw: bytes) -> None:
    wire.fault(ORDER, raw)
