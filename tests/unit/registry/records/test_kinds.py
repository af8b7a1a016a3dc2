"""The table of record kinds names each kind once, with all that its treatment needs."""

from __future__ import annotations

from typing import get_args

import pytest

from services.common.rpc import gatekeeper
from services.common.rpc.identity import Role
from services.registry.domain.reconciliation import Agency
from services.registry.domain.records import ListedKind
from services.registry.records.kinds import LISTED_BY, RECORD_TYPES, UNIT_TYPES, Record, RecordType


def test_each_kind_of_record_stands_in_the_table_once() -> None:
    assert sorted(kind.cls.__name__ for kind in RECORD_TYPES) == sorted(cls.__name__ for cls in get_args(Record))
    for attribute in ("table", "listed_kind"):
        assert len({getattr(kind, attribute) for kind in RECORD_TYPES}) == len(RECORD_TYPES)
    assert {kind.listed_kind for kind in RECORD_TYPES} == set(ListedKind)


@pytest.mark.parametrize("kind", RECORD_TYPES, ids=lambda kind: kind.cls.__name__)
def test_a_kind_is_either_encrypted_or_stored_in_columns_of_its_fields(kind: RecordType[Record]) -> None:
    columns = set(kind.table.c.keys())
    if kind.ledger_kind is not None:
        assert "sealed" in columns and (kind.person is None) == (kind.side is None)
    else:
        assert columns - {"digest", "recorded_ms"} == set(kind.cls.__dataclass_fields__)


@pytest.mark.parametrize("kind", RECORD_TYPES, ids=lambda kind: kind.cls.__name__)
def test_a_kind_is_listed_by_the_agency_that_may_put_it(kind: RecordType[Record]) -> None:
    records = {Agency.MOJ: Role.ROLE_MOJ_RECORDS, Agency.NPA: Role.ROLE_NPA_RECORDS}
    put = f"tandem.registry.v1.RegistryService/Put{kind.cls.__name__}"
    if kind in UNIT_TYPES:
        put = "tandem.registry.v1.PresenceUnitService/PutPresenceUnit"
    assert records[kind.agency] in gatekeeper.allowed_roles(f"/{put}")
    assert [agency for agency, listed in LISTED_BY.items() if kind.listed_kind in listed] == [kind.agency]


def test_each_agency_lists_its_kinds_in_the_order_of_their_numbers() -> None:
    for listed in LISTED_BY.values():
        assert [kind.value for kind in listed] == sorted(kind.value for kind in listed)
