"""Forms of single records with a real registry: records, extensions and ends by an agency's clerk, and each fault with its field."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from services.common.rpc import server
from services.console.pages.texts import TEXTS
from tandem.registry.v1 import registry_pb2, registry_pb2_grpc
from tests.support.console.console import SECRET, ConsoleBench, Visitor, console_bench
from tests.support.registry import records
from tests.support.registry.registry import MOJ, NPA, RegistryMesh, running_registry

pytestmark = pytest.mark.asyncio(loop_scope="module")
ARTICLE = "STALKING_9_1_2"


class OpenedRecords(NamedTuple):
    """A console with a real registry, which has a wearer with a tag, a protected person and an order."""

    bench: ConsoleBench
    registry: RegistryMesh


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryMesh]:
    with running_registry(tmp_path_factory.mktemp("registry"), 1, env={"TANDEM_DEV_SECRET": SECRET}) as mesh:
        yield mesh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory, registry: RegistryMesh) -> AsyncIterator[OpenedRecords]:
    await registry.service.ready(registry.address)
    more = {"TANDEM_REGISTRY": f"ipv4:{registry.address}"}
    async with (
        console_bench(tmp_path_factory.mktemp("console"), more) as bench,
        server.channel(registry.address) as channel,
    ):
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        ministry, police = server.bearer(MOJ, SECRET), server.bearer(NPA, SECRET)
        wearer, tag = records.wearer("w-0", "800101-1234567"), records.tag(wearer_id="w-0")
        await stub.PutWearer(registry_pb2.PutWearerRequest(wearer=wearer), metadata=ministry, wait_for_ready=True)
        await stub.PutTag(registry_pb2.PutTagRequest(tag=tag), metadata=ministry)
        person = registry_pb2.PutProtectedPersonRequest(protected_person=records.person())
        await stub.PutProtectedPerson(person, metadata=police)
        order = records.order("o-1", ("p-1",), national_id="800101-1234567")
        await stub.PutOrder(registry_pb2.PutOrderRequest(order=order), metadata=police)
        yield OpenedRecords(bench, registry)


async def test_a_clerk_enters_single_records_and_each_fault_names_its_field_with_an_example(
    opened: OpenedRecords,
) -> None:
    wearer = {"wearer_id": "w-9", "national_id": "900101-1234567", "name": "제갈공명", "birth_date": "1990-01-01"}
    wearer |= {"sex": "SEX_MALE", "source_version": "1"}
    async with opened.bench.visitor("probation-records", "han") as clerk:
        assert (await clerk.get("/"))[2]["Location"] == "/records"
        assert 'href="/records/tag"' in await clerk.read("/records")
        await clerk.read("/records/wearer")
        for outcome in ("STORED", "UNCHANGED"):
            status, page = await clerk.post("/records/wearer", **wearer)
            assert status == 200 and f'data-outcome="{outcome}"' in page
        status, page = await clerk.post("/records/wearer", **(wearer | {"phone": "010-9999-8888"}))
        assert status == 409 and TEXTS["record_409"][0] in page and "010-9999-8888" in page
        assert 'data-outcome="STORED"' in (await clerk.post("/records/wearer", **(wearer | {"source_version": "2"})))[1]
        assert 'data-outcome="SUPERSEDED"' in (await clerk.post("/records/wearer", **(wearer | {"name": "다른"})))[1]
        cases = [
            ({"national_id": "12"}, "national_id", "800229-1234567"),
            ({"birth_date": "1990-13-01"}, "birth_date", "1980-02-29"),
            ({"wearer_id": "a b"}, "wearer_id", "W-1024"),
            ({"name": ""}, "name", "홍길동"),
            ({"source_version": "two"}, "source_version", "1"),
            ({"sex": "<b>"}, "sex", ""),
        ]
        for wrong, field, example in cases:
            status, page = await clerk.post("/records/wearer", **(wearer | {"source_version": "3"} | wrong))
            (refusal,) = re.findall(r'id="refusal"[^>]*>(.*?)</p>', page)
            assert status == 400 and refusal.startswith(TEXTS[f"input_{field}"][0]), (field, refusal)
            assert TEXTS[f"record_wrong_{field}"][0] in refusal and example in refusal and "<b>" not in refusal
        status, page = await clerk.post(
            "/records/tag", device_id="tag-9", wearer_id="w-none", source_version="1", basis="TAG_BASIS_JUDGMENT"
        )
        assert status in (400, 404, 409) and "w-none" in page and 'data-outcome="STORED"' not in page
        assert (await clerk.get("/records/order"))[0] == 403 and (await clerk.get("/records/spell"))[0] == 404
        for path in ("/handover", "/people", "/devices", "/search", "/roster", "/reviews"):
            assert (await clerk.get(path))[0] == 403, path
    order = {"order_id": "o-9", "type": "ORDER_TYPE_STALKING_APPROACH", "name": "제갈공명", "birth_date": "1990-01-01"}
    order |= {"protected_person_ids": "p-1", "places": "home 37.5665 126.9780 50", "source_version": "1"}
    order |= {"valid_from": "2026-11-02T18:00", "valid_until": "2027-11-02T18:00"}
    async with opened.bench.visitor("police-records", "oh") as clerk:
        await clerk.read("/records/order")
        status, page = await clerk.post("/records/order", **order)
        assert status == 200 and 'data-outcome="STORED"' in page and 'data-warned="valid_until"' in page
        for wrong, field in (
            ({"places": "home Seoul"}, "places"),
            ({"places": ","}, "places"),
            ({"places": "home 1 1 50"}, "places"),
            ({"valid_until": "2026-11-01T18:00"}, "valid_until"),
            ({"valid_from": "yesterday"}, "valid_from"),
        ):
            status, page = await clerk.post("/records/order", **(order | {"order_id": "o-10"} | wrong))
            assert status == 400 and TEXTS[f"record_wrong_{field}"][0] in page, (field, page)
    async with opened.bench.visitor("police") as desk:
        assert (await desk.get("/records"))[0] == 403
        await desk.read("/people")
        status, page = await desk.post("/people", name="제갈공명", legal_basis=ARTICLE, purpose="ENFORCEMENT")
        assert {"w-9", "o-9"} <= set(re.findall(r'data-record="([^"]+)"', page)) and "o-10" not in page


async def stored_order(clerk: Visitor, order_id: str) -> dict[str, str]:
    """Fields of an order that a clerk has entered: valid from 2026-11-02 for three months."""
    order = {
        "order_id": order_id,
        "type": "ORDER_TYPE_STALKING_APPROACH",
        "name": "제갈공명",
        "birth_date": "1990-01-01",
    }
    order |= {"protected_person_ids": "p-1", "places": "home 37.5665 126.9780 50", "source_version": "1"}
    order |= {"valid_from": "2026-11-02T18:00:00", "valid_until": "2027-02-02T18:00:00"}
    await clerk.read("/records/order")
    assert 'data-outcome="STORED"' in (await clerk.post("/records/order", **order))[1]
    return order


async def test_a_clerk_extends_an_order_by_its_id_and_new_end_and_ends_it(opened: OpenedRecords) -> None:
    async with opened.bench.visitor("police-records", "oh") as clerk:
        page = await clerk.read("/records")
        assert 'href="/records/order-extension"' in page and 'href="/records/order-end"' in page
        assert "/records/wearer" not in page
        await stored_order(clerk, "o-11")
        extension = {"order_id": "o-11", "valid_until": "2027-05-02T18:00:00", "source_version": "2"}
        for outcome in ("STORED", "UNCHANGED"):
            status, page = await clerk.post("/records/order-extension", **extension)
            assert status == 200 and f'data-outcome="{outcome}"' in page and "data-warned" not in page
        too_long = extension | {"valid_until": "2028-05-02T18:00:00", "source_version": "3"}
        status, page = await clerk.post("/records/order-extension", **too_long)
        assert 'data-outcome="STORED"' in page and 'data-warned="valid_until"' in page
        cases = [
            ("order-extension", {"valid_until": "2027-01-02T18:00:00"}, "valid_until", "2026-09-01T18:00:00"),
            ("order-extension", {"valid_until": "soon"}, "valid_until", "2026-09-01T18:00:00"),
            ("order-extension", {"valid_until": ""}, "valid_until", "2026-09-01T18:00:00"),
            ("order-extension", {"order_id": "<b>"}, "order_id", "2026-JUNG-31"),
            ("order-extension", {"source_version": "x"}, "source_version", "2"),
            ("order-end", {"reason": ""}, "reason", ""),
            ("order-end", {"reason": "END_REASON_DECIDED", "covering_order_id": "o-1"}, "reason", ""),
            ("order-end", {"reason": "END_REASON_COVERED_BY_COURT_ORDER"}, "covering_order_id", "2026-JUNG-32"),
            ("order-end", {"reason": "END_REASON_ACQUITTAL", "ended_at": "gestern"}, "ended_at", "2026-06-01T18:00:00"),
        ]
        end = {"ended_at": "2026-11-20T10:00:30", "covering_order_id": ""}
        for kind, wrong, field, example in cases:
            status, page = await clerk.post(f"/records/{kind}", **(extension | end | {"source_version": "4"} | wrong))
            (refusal,) = re.findall(r'id="refusal"[^>]*>(.*?)</p>', page)
            assert status == 400 and refusal.startswith(TEXTS[f"input_{field}"][0]), (kind, wrong, refusal)
            assert TEXTS[f"record_wrong_{field}"][0] in refusal and example in refusal and "<b>" not in refusal
        status, page = await clerk.post("/records/order-extension", **(extension | {"order_id": "o-none"}))
        assert status == 404 and TEXTS["record_none"][0] in page and 'value="o-none"' in page
        end |= {"order_id": "o-11", "reason": "END_REASON_CANCELLED_BY_COURT", "source_version": "4"}
        assert re.search(r'name="ended_at"[^>]* value="20\d\d-', await clerk.read("/records/order-end"))
        assert 'data-outcome="STORED"' in (await clerk.post("/records/order-end", **end))[1]
        status, page = await clerk.post("/records/order-extension", **(extension | {"source_version": "5"}))
        assert status == 409 and TEXTS["record_blocked_order-extension"][0] in page
    (ended,) = opened.registry.query(
        "select count(*) from order_stages where order_id = 'o-11' and stage = 'CANCELLED'"
    )
    assert ended == (1,)


async def test_a_clerk_is_warned_of_a_mistyped_year_and_cant_end_a_tag_in_the_future(opened: OpenedRecords) -> None:
    wearer = {"wearer_id": "w-year", "national_id": "800101-1966001", "name": "Kim", "birth_date": "1980-01-01"}
    wearer |= {"sex": "", "phone": "", "address": "", "source_version": "1"}
    tag = {"device_id": "tag-year", "wearer_id": "w-year", "vendor_id": "", "basis": "", "source_version": "1"}
    async with opened.bench.visitor("probation-records", "han") as clerk:
        await clerk.read("/records/wearer")
        for kind, values in (("wearer", wearer), ("tag", tag)):
            assert 'data-outcome="STORED"' in (await clerk.post(f"/records/{kind}", **values))[1]
        end = {"device_id": "tag-year", "source_version": "2"}
        status, page = await clerk.post("/records/tag-end", **end, removed_at="2199-01-01T10:00:00")
        assert status == 400 and TEXTS["record_wrong_removed_at"][0] in page
        status, page = await clerk.post("/records/tag-end", **end, removed_at="2016-11-20T10:00:00")
        assert 'data-outcome="STORED"' in page and 'data-warned="removed_at"' in page
        corrected = {**end, "source_version": "3", "removed_at": "2026-11-20T10:00:00"}
        status, page = await clerk.post("/records/tag-end", **corrected)
        assert 'data-outcome="STORED"' in page and "data-warned" not in page


async def test_clerks_enter_and_remove_home_units_and_beacons_of_their_own_side(opened: OpenedRecords) -> None:
    unit = {"unit_id": "home-9", "wearer_id": "w-0", "kind": "PRESENCE_UNIT_KIND_HOME_UNIT", "identifier": ""}
    unit |= {"place": "37.5665 126.9780 30", "installed_from": "2026-11-02T18:00:00", "source_version": "1"}
    async with opened.bench.visitor("probation-records", "han") as clerk:
        assert "/records/person-unit" not in await clerk.read("/records")
        await clerk.read("/records/wearer-unit")
        for wrong, field in (
            ({"place": "Seoul"}, "place"),
            ({"place": "37.5665 126.9780 300"}, "place"),
            ({"place": "1 1 30"}, "place"),
            ({"kind": ""}, "kind"),
            ({"identifier": "02:00:5E:10:00:01"}, "identifier"),
            ({"installed_from": ""}, "installed_from"),
            ({"wearer_id": ""}, "wearer_id"),
        ):
            status, page = await clerk.post("/records/wearer-unit", **(unit | wrong))
            assert status == 400 and TEXTS[f"record_wrong_{field}"][0] in page, (wrong, page)
        assert 'data-outcome="STORED"' in (await clerk.post("/records/wearer-unit", **unit))[1]
        status, page = await clerk.post("/records/wearer-unit", **(unit | {"unit_id": "tag-1"}))
        assert status == 409 and TEXTS["record_blocked_wearer-unit"][0] in page
        end = {"wearer_id": "w-0", "reason": "WEARER_END_REASON_COMPLETED", "ended_at": "2026-11-20T10:00:00"}
        status, page = await clerk.post("/records/wearer-end", **(end | {"source_version": "2"}))
        assert status == 409 and TEXTS["record_blocked_wearer-end"][0] in page
        removal = {"unit_id": "home-9", "removed_at": "2026-11-20T10:00:00", "source_version": "2"}
        for outcome in ("STORED", "UNCHANGED"):
            assert f'data-outcome="{outcome}"' in (await clerk.post("/records/wearer-unit-end", **removal))[1]
    beacon = {"unit_id": "beacon-9", "person_id": "p-1", "kind": "PRESENCE_UNIT_KIND_BLUETOOTH_BEACON"}
    async with opened.bench.visitor("police-records", "oh") as clerk:
        await clerk.read("/records/person-unit")
        given = beacon | {key: unit[key] for key in ("place", "installed_from", "source_version")}
        status, page = await clerk.post("/records/person-unit", **(given | {"identifier": "none"}))
        assert status == 400 and TEXTS["record_wrong_identifier"][0] in page and "02:00:5E:10:00:01" in page
        given |= {"identifier": "02:00:5E:10:00:01"}
        assert 'data-outcome="STORED"' in (await clerk.post("/records/person-unit", **given))[1]
        assert (await clerk.get("/records/wearer-unit"))[0] == 403
        end = {"person_id": "p-1", "ended_at": "2026-11-20T10:00:00", "source_version": "2"}
        status, page = await clerk.post("/records/protected-person-end", **end)
        assert status == 409 and TEXTS["record_blocked_protected-person-end"][0] in page
