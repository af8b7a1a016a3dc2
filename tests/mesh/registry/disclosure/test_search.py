"""The search for people and orders beside the registry's writes, on both engines."""

from __future__ import annotations

import asyncio
from datetime import date
from pathlib import Path

import pytest

from services.common.clock import MeshClock
from services.common.errors import InvalidField
from services.common.privacy.grounds import RecordKind
from services.common.rpc.identity import caller_of
from services.common.storage.db import open_database
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.records.kinds import ORDERS, PERSONS, WEARERS
from services.registry.search import RecordQuery, RecordSearch, parse_query
from services.registry.tables import MIGRATIONS
from tandem.registry.v1 import record_search_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore

WITHIN_S = 60.0


@pytest.mark.parametrize(
    ("query", "finds_persons"),
    [
        (RecordQuery(name="성춘향"), True),
        (RecordQuery(record_id="p-1"), True),
        (RecordQuery(name="성춘향", birth_date=date(1980, 1, 1)), False),
        (RecordQuery(phone="010-1234-5678"), False),
    ],
)
async def test_an_answer_names_protected_persons_as_searched_only_where_they_can_be_found(
    where: Path | str, query: RecordQuery, finds_persons: bool
) -> None:
    async with open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), MeshClock())
        search = RecordSearch(registry.disclosures, registry.transactions)
        desk = caller_of("spiffe://npa/desk/seoul")
        searched = search.kinds_for(desk, frozenset(RecordKind), query)
        assert searched == [WEARERS, *([PERSONS] if finds_persons else []), ORDERS]
        await registry.prepare()
        assert set(await search._candidates(query, searched)) == set(searched)


@pytest.mark.parametrize("phone", ["010-1234-5678", "０１０－１２３４－５６７８", "+82 10 1234 5678"])
def test_a_telephone_number_is_searched_however_its_digits_are_written(phone: str) -> None:
    query = parse_query(record_search_pb2.SearchRecordsRequest(phone=phone))
    assert query.keys == RecordQuery(phone="01012345678").keys != frozenset()


@pytest.mark.parametrize("phone", ["123456", "٠١٠١٢٣٤٥٦٧٨", "1" * 16, "0 1 0 1 2 3 4 5 6 7 8".ljust(41)])
def test_a_telephone_number_that_no_record_can_have_is_refused(phone: str) -> None:
    with pytest.raises(InvalidField, match="phone: must be at most 40 characters with 7 to 15 digits"):
        parse_query(record_search_pb2.SearchRecordsRequest(phone=phone))


async def test_a_search_reads_all_persons_without_the_lock_of_the_writers(where: Path | str) -> None:
    async with open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), MeshClock())
        await registry.prepare()
        for number in range(3):
            person = translate.parse_protected_person(records.person(f"p-{number}"))
            await registry.police.put_protected_person(person)
        wearer = records.wearer()
        await registry.ministry.put_wearer(translate.parse_wearer(wearer))
        search = RecordSearch(registry.disclosures, registry.transactions)
        async with database.transaction(), asyncio.timeout(WITHIN_S):  # as while an agency puts its records
            persons = await search._candidates(RecordQuery(name=records.person().name), [PERSONS])
            others = await search._candidates(RecordQuery(name=wearer.name), [WEARERS, ORDERS])
        assert persons == {PERSONS: ["p-0", "p-1", "p-2"]}
        assert others == {WEARERS: [wearer.wearer_id], ORDERS: []}
