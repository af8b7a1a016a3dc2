"""The form and the validity of enrolment codes."""

from __future__ import annotations

import pytest

from services.common.errors import FailedPrecondition, InvalidField, NotFound
from services.registry.domain import device_tokens
from services.registry.domain.device_tokens import EnrolmentCode


def stored(used_ms: int | None = None, expires_ms: int = 1_000) -> EnrolmentCode:
    return EnrolmentCode(b"hash", "phone-1", expires_ms, used_ms, "spiffe://npa/desk/seoul")


def test_a_written_code_is_parsed_however_it_is_typed() -> None:
    code = device_tokens.written_code(range(12))
    assert code == "2345-6789-ABCD"
    for typed in (code, code.lower(), code.replace("-", " "), " 23456789abcd "):
        assert device_tokens.parse_code(typed) == "23456789ABCD"


@pytest.mark.parametrize(
    "text", ["", "2345", "2345-6789-ABCO", "2345-6789-ABCD-E", "2345\n6789ABCD", "２345-6789-ABCD"]
)
def test_other_texts_are_no_code(text: str) -> None:
    with pytest.raises(InvalidField):
        device_tokens.parse_code(text)


def test_a_code_is_good_until_its_end_and_once() -> None:
    assert device_tokens.check_code(stored(), 999).device_id == "phone-1"
    with pytest.raises(NotFound):
        device_tokens.check_code(None, 0)
    with pytest.raises(FailedPrecondition) as expired:
        device_tokens.check_code(stored(), 1_000)
    with pytest.raises(FailedPrecondition) as used:
        device_tokens.check_code(stored(used_ms=5), 2_000)
    assert (expired.value.code, used.value.code) == ("CODE_EXPIRED", "CODE_USED")


def test_the_validity_has_bounds() -> None:
    assert device_tokens.code_valid_for_s(0) == 900 and device_tokens.code_valid_for_s(60) == 60
    for wrong in (59, 86_401):
        with pytest.raises(InvalidField):
            device_tokens.code_valid_for_s(wrong)
