"""Which ground a tag and an order give the Ministry for a notice, by article, and what the closed list says of each article."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidField
from services.common.privacy.grounds import LEGAL_BASES, Purpose, RecordKind, check_grounds, check_notice
from services.common.privacy.notices import (
    Giver,
    NoticeGround,
    Recipient,
    TagBasis,
    ground_of,
    is_recipient,
    location_basis,
    police_must_check,
    recipient_id,
    why_none,
)
from services.registry.domain.records import OrderType

NOTICES = {basis.code: basis for basis in LEGAL_BASES if basis.notice is not None}


def test_the_closed_list_has_the_six_articles_with_giver_recipient_order_and_need() -> None:
    assert set(NOTICES) == {
        *("TAG_15_2", "TAG_16_2_5", "TAG_DECREE_13_3"),
        *("TAG_31_6_4", "TAG_31_8_2_5", "TAG_DECREE_23_17"),
    }
    for basis in NOTICES.values():
        terms = basis.notice
        assert terms is not None and terms.needs
        assert (terms.giver, terms.recipient) == (Giver.MINISTRY, Recipient.PROTECTED_PERSON)
        assert terms.order_type in OrderType.__members__
        assert ground_of([terms.tag_basis], terms.order_type) is terms.ground
        assert terms.gives_location is (basis.code != terms.ground.value)
    assert {location_basis(ground) for ground in NoticeGround} == {"TAG_16_2_5", "TAG_31_8_2_5"}


@pytest.mark.parametrize("basis", TagBasis)
@pytest.mark.parametrize("order_type", ["", *OrderType.__members__])
def test_only_two_pairs_of_tag_and_order_give_a_ground(basis: TagBasis, order_type: str) -> None:
    expected = {
        (TagBasis.JUDGMENT, "TAG_CONDITION"): NoticeGround.JUDGMENT,
        (TagBasis.STALKING_ORDER, "STALKING_APPROACH"): NoticeGround.STALKING_ORDER,
    }.get((basis, order_type))
    assert ground_of([basis], order_type) is expected
    assert bool(why_none([basis], order_type)) is (expected is None)
    checks = basis is TagBasis.STALKING_ORDER and order_type in ("STALKING_APPROACH", "STALKING_TAG")
    assert police_must_check([basis], order_type) is checks


def test_core_case_an_earlier_tag_and_a_bare_police_order_give_no_ground() -> None:
    assert ground_of([TagBasis.JUDGMENT], "POLICE_EMERGENCY") is None
    assert why_none([TagBasis.JUDGMENT], "POLICE_EMERGENCY") == (
        "no article covers a notice under an order of the type POLICE_EMERGENCY"
    )
    assert why_none([TagBasis.JUDGMENT], "STALKING_APPROACH") == (
        "an order of the type STALKING_APPROACH needs a tag of the basis STALKING_ORDER"
    )
    assert why_none([], "TAG_CONDITION") == "the wearer wears no tag"


def test_of_two_tags_either_may_give_the_ground() -> None:
    assert ground_of([TagBasis.OTHER, TagBasis.JUDGMENT], "TAG_CONDITION") is NoticeGround.JUDGMENT


@pytest.mark.parametrize("code", sorted(NOTICES))
@pytest.mark.parametrize("kind", RecordKind)
def test_no_caller_reads_a_record_under_an_article_of_a_notice(code: str, kind: RecordKind) -> None:
    with pytest.raises(InvalidField, match="doesn't allow reading a record"):
        check_grounds(code, Purpose.ENFORCEMENT, "incident-1", kind=kind, now_ms=1)


@pytest.mark.parametrize(
    ("code", "reference", "field"),
    [
        ("", "incident-1", "legal_basis"),
        ("BECAUSE", "incident-1", "legal_basis"),
        ("TAG_16_2", "incident-1", "legal_basis"),
        ("STALKING_4", "incident-1", "legal_basis"),
        ("TAG_15_2", "", "reference"),
        ("TAG_15_2", "not an id", "reference"),
    ],
)
def test_a_notice_without_a_ground_is_refused_with_its_field(code: str, reference: str, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        check_notice(code, reference, now_ms=1)
    assert refused.value.field == field


def test_the_recipient_of_a_notice_is_a_protected_person_by_id() -> None:
    assert is_recipient(recipient_id("p-1"))
    assert not any(
        is_recipient(text) for text in ("", "p-1", "spiffe://npa/desk/a", recipient_id(""), recipient_id("a/b"))
    )
