"""Pages of a desk with a real police leg and registry: handover, people, burden and roster; other roles, old pages and bad input."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from services.common.messaging import bus as buses
from services.common.rpc import server
from services.console.pages.texts import TEXTS
from tandem.registry.v1 import registry_pb2, registry_pb2_grpc
from tests.support.console.console import SECRET, ConsoleBench, console_bench
from tests.support.dispatch.dispatch import alert, publish, running, settings
from tests.support.registry import records
from tests.support.registry.registry import MOJ, NPA, RegistryMesh, running_registry

pytestmark = pytest.mark.asyncio(loop_scope="module")
ARTICLE = "STALKING_9_1_2"
PAGES = ("/handover", "/people", "/orders/order-1", "/roster", "/watched-devices", "/watched-devices/tag-1")


class OpenedDesk(NamedTuple):
    """A console with a real police leg and a real registry."""

    bench: ConsoleBench
    registry: RegistryMesh
    incident_id: str
    order_id: str

    def rows(self) -> list[tuple[str, str]]:
        """Kind and id of the records in the ledger, oldest first."""
        return [
            tuple(row) for row in self.registry.query("select record_kind, record_id from ledger order by sequence")
        ]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryMesh]:
    with running_registry(tmp_path_factory.mktemp("registry"), 1, env={"TANDEM_DEV_SECRET": SECRET}) as mesh:
        yield mesh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory, registry: RegistryMesh) -> AsyncIterator[OpenedDesk]:
    await registry.service.ready(registry.address)
    leg = settings("police", registry.nats, tmp_path_factory.mktemp("police"), dev_secret=SECRET)
    more = {"TANDEM_REGISTRY": f"ipv4:{registry.address}", "TANDEM_DISPATCH_POLICE": f"ipv4:127.0.0.1:{leg.port}"}
    async with (
        running(leg),
        console_bench(tmp_path_factory.mktemp("console"), more) as bench,
        server.channel(registry.address) as channel,
        buses.connect(registry.nats.url, "test") as bus,
    ):
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        for number, name in enumerate(("홍길동", "황보은밀")):
            wearer = records.wearer(f"w-{number}", f"80010{number + 1}-1234567")
            wearer.name, wearer.phone = name, f"010-1111-000{number}"
            await stub.PutWearer(
                registry_pb2.PutWearerRequest(wearer=wearer), metadata=server.bearer(MOJ, SECRET), wait_for_ready=True
            )
        await stub.PutTag(
            registry_pb2.PutTagRequest(tag=records.tag(wearer_id="w-0")), metadata=server.bearer(MOJ, SECRET)
        )
        await stub.PutProtectedPerson(
            registry_pb2.PutProtectedPersonRequest(protected_person=records.person()),
            metadata=server.bearer(NPA, SECRET),
        )
        order = records.order("o-1", ("p-1",), national_id="800101-1234567")
        order.respondent.name = "홍길동"
        await stub.PutOrder(registry_pb2.PutOrderRequest(order=order), metadata=server.bearer(NPA, SECRET))
        await publish(bus, alert(5))
        yield OpenedDesk(bench, registry, await _incident(bench), "order-1")


async def _incident(bench: ConsoleBench) -> str:
    """Waits until the police leg lists the incident, as its console shows it."""
    async with bench.visitor("police") as visitor, asyncio.timeout(60):
        while True:
            page = await visitor.read("/search")
            if found := re.search(r'href="/incidents/([^"]+)"', page):
                return found[1]
            await asyncio.sleep(0.1)


def form_of(page: str, name: str) -> str:
    """Value of the first hidden field with a name."""
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found, name
    return found[1]


async def test_a_handover_is_written_by_one_shift_and_acknowledged_by_the_next(opened: OpenedDesk) -> None:
    async with opened.bench.visitor("police", "kim") as kim, opened.bench.visitor("police", "lee") as lee:
        page = await kim.read("/handover")
        assert opened.incident_id in page and TEXTS["handover_none_waiting"][0] in page
        assert TEXTS["handover_away_ingest"][0] in page and TEXTS["handover_away_geofence"][0] in page
        form = {
            "handover_id": form_of(page, "handover_id"),
            "notes": 'ćwi <b onclick="x()">북문</b>\n2층',
            "case_ids": "",
            "incomplete": form_of(page, "incomplete"),
        }
        for _ in range(2):  # a form that is sent twice is one handover
            assert (await kim.post("/handover", **form))[0] == 303
        page = await kim.read("/handover?done=written")
        assert page.count("data-handover=") == 1 and TEXTS["handover_done_written"][0] in page
        # The services that know the devices are away, and the registry isn't.
        unknown = TEXTS["handover_unknown"][0]
        assert f"{TEXTS['handover_devices'][0]} {unknown}" in page and f"{TEXTS['reviews'][0]} {unknown}" not in page
        assert "&lt;b onclick=" in page and "<b onclick" not in page and "<br>2층" in page
        assert TEXTS["handover_own"][0] in page and "/acknowledge" not in page
        path = f"/handover/{form['handover_id']}/acknowledge"
        status, page = await kim.post(path, remark="")
        assert status == 409 and TEXTS["handover_handover_own"][0] in page
        await lee.read("/handover")
        assert (await lee.post(path, remark="인수함"))[0] == 303
        async with opened.bench.visitor("police", "park") as park:
            page = await park.read("/handover")
            assert "kim" in page and "lee" in page and "인수함" in page
            status, page = await park.post(path, remark="")  # an old page
            assert status == 409 and TEXTS["handover_handover_acknowledged"][0] in page
        async with opened.bench.visitor("reviewer") as reviewer:
            page = await reviewer.read("/handover")
            assert "인수함" in page and 'id="h-write"' not in page


async def test_a_bad_handover_names_the_field_and_keeps_what_was_written(opened: OpenedDesk) -> None:
    async with opened.bench.visitor("police", "choi") as visitor:
        page = await visitor.read("/handover")
        before, id_ = page.count("data-handover="), form_of(page, "handover_id")
        for notes in ("", "  ", "x" * 4_001):
            status, page = await visitor.post("/handover", handover_id=id_, notes=notes)
            assert status == 400 and TEXTS["handover_wrong_notes"][0] in page and TEXTS["input_notes"][0] in page
        status, page = await visitor.post("/handover", handover_id="a b", notes="쓴 글")
        assert status == 400 and "쓴 글" in page
        assert (await visitor.post("/handover/handover-none/acknowledge", remark=""))[0] == 404
        assert (await visitor.read("/handover")).count("data-handover=") == before


@pytest.mark.parametrize(
    ("role", "allowed"),
    [("operator", set[str]()), ("reviewer", {"/handover", "/people", "/orders/order-1"})],
)
async def test_other_roles_are_denied(opened: OpenedDesk, role: str, allowed: set[str]) -> None:
    async with opened.bench.visitor(role) as visitor:
        for path in PAGES:
            assert (await visitor.get(path))[0] == (200 if path in allowed else 403), path
        if allowed:  # so that the role is refused, and not the form's token
            await visitor.read("/people")
        for path in (
            "/handover",
            "/handover/h-1/acknowledge",
            "/roster/units",
            "/roster/unit-link",
            "/roster/offices",
            "/roster/status",
        ):
            assert (await visitor.post(path, notes="x"))[0] == 403, path
        if not allowed:
            assert (await visitor.post("/people", name="홍길동"))[0] == 403


async def test_people_are_found_by_name_with_a_row_of_the_ledger_for_each_record(opened: OpenedDesk) -> None:
    async with opened.bench.visitor("police") as police:
        page = await police.read("/people?record_id=w-0")
        assert 'value="w-0"' in page and "홍길동" not in page
        before = opened.rows()
        form = {"legal_basis": ARTICLE, "purpose": "ENFORCEMENT"}
        status, page = await police.post("/people", name="홍길동", **form)
        assert status == 200
        kinds = set(re.findall(r'data-record="([^"]+)" data-kind="(\w+)"', page))
        assert kinds == {("w-0", "wearer"), ("o-1", "order")}
        assert sorted(opened.rows()[len(before) :]) == [("ORDER", "o-1"), ("WEARER", "w-0")]
        assert 'href="/orders/o-1"' in page and "010-1111-0000" in page and "tag-1" not in page, "tags are probation's"
        status, page = await police.post("/people", phone="010 1111 0001", **form)
        assert 'data-record="w-1"' in page and "황보은밀" in page
        status, page = await police.post("/people", name="성춘향", **form)
        assert 'data-record="p-1" data-kind="protected_person"' in page
        before = opened.rows()
        status, page = await police.post("/people", name="홍길동", birth_date="1999-01-01", **form)
        assert status == 200 and TEXTS["people_none"][0] in page and opened.rows() == before
    async with opened.bench.visitor("probation") as probation:
        await probation.read("/people")
        status, page = await probation.post("/people", record_id="w-0", **form)
        assert "tag-1" in page and opened.rows()[len(before) :] == [("WEARER", "w-0")]


async def test_a_search_without_grounds_or_with_rubbish_discloses_nothing(opened: OpenedDesk) -> None:
    cases: list[tuple[dict[str, str], str]] = [
        ({"name": "홍길동", "legal_basis": ""}, "people_wrong_legal_basis"),
        ({"name": "홍길동", "legal_basis": "MY_OWN_WISH"}, "people_wrong_legal_basis"),
        ({"name": "홍길동", "purpose": "CURIOSITY"}, "people_wrong_purpose"),
        ({"name": "홍"}, "people_wrong_name"),
        ({}, "people_wrong_name"),
        ({"phone": "112"}, "people_wrong_phone"),
        ({"name": "홍길동", "birth_date": "2026-13-01"}, "people_wrong_birth_date"),
        ({"record_id": "<script>"}, "people_wrong_record_id"),
    ]
    async with opened.bench.visitor("police") as police:
        await police.read("/people")
        before = opened.rows()
        for given, key in cases:
            status, page = await police.post("/people", **({"legal_basis": ARTICLE, "purpose": "ENFORCEMENT"} | given))
            assert status == 400 and TEXTS[key][0] in page and "010-1111" not in page, given
            assert "<script>" not in page.partition("<main")[2].partition("<form")[0]
        assert opened.rows() == before


async def test_the_burden_of_an_order_is_shown_by_cause(opened: OpenedDesk) -> None:
    async with opened.bench.visitor("police") as police:
        page = await police.read(f"/orders/{opened.order_id}")
        assert opened.incident_id in page and 'data-kind="RING_ENTERED"' in page
        assert TEXTS["burden_none"][0] in await police.read("/orders/o-unknown?days=30")
        assert (await police.get("/orders/o-1?days=31"))[0] == 400 and (await police.get("/orders/a%20b"))[0] == 400


async def test_the_roster_is_kept_and_an_old_page_changes_nothing(opened: OpenedDesk) -> None:
    office = {"office_id": "seoul-1", "supervisor_desk": "supervisor-1", "national_desk": "national", "version": "0"}
    area = {"area": "circle", "lat_deg": "37.5665", "lon_deg": "126.978", "radius_m": "3000"}
    unit = {"unit_id": "car-2", "office_id": "seoul-1", "unit_class": "patrol-car", "skills": "female-officer, dog"}
    shift = {"shift_from": "2026-03-02T18:00", "shift_until": "2026-03-03T09:00", "version": "0"}
    async with opened.bench.visitor("police") as police:
        await police.read("/roster")
        assert (await police.post("/roster/offices", **office, **area, subject_ids="W-1 o-1/home"))[0] == 303
        assert (await police.post("/roster/units", **unit, **shift))[0] == 303
        page = await police.read("/roster?done=1")
        assert "3,000 m" in page and "2026-03-02 18:00" in page and 'value="2026-03-02T18:00"' in page
        assert TEXTS["roster_done"][0] in page
        changed = {**office, "version": "1", "area": "keep", "next_office_id": "seoul-2"}
        assert (await police.post("/roster/offices", **changed))[0] == 303
        page = await police.read("/roster")
        assert "3,000 m" in page and "seoul-2" in page, "the area is kept"
        status, page = await police.post("/roster/offices", **{**changed, "next_office_id": "seoul-3"})
        assert status == 409 and TEXTS["roster_409"][0] in page and 'value="seoul-3"' in page, "what was typed is kept"
        page = await police.read("/roster")
        assert "seoul-2" in page and "seoul-3" not in page
        assert (await police.post("/roster/status", unit_id="car-2", status="BUSY"))[0] == 303
        assert 'value="BUSY" selected' in await police.read("/roster")
        cases = [
            ("/roster/units", {**unit, **shift, "shift_until": "2026-03-02T08:00"}, "shift_until"),
            ("/roster/units", {**unit, **shift, "shift_from": "morgen"}, "shift_from"),
            ("/roster/units", {**unit, **shift, "unit_class": "순찰차"}, "unit_class"),
            ("/roster/offices", {**office, **area, "office_id": "x", "radius_m": "viel"}, "radius_m"),
            ("/roster/offices", {**office, "office_id": "x", "national_desk": ""}, "national_desk"),
            ("/roster/status", {"unit_id": "car-2", "status": "SLEEPING"}, "status"),
        ]
        for path, form, field in cases:
            status, page = await police.post(path, **form)
            assert status == 400 and TEXTS[f"roster_wrong_{field}"][0] in page, field
            assert TEXTS[f"input_{field}"][0] in page
        status, page = await police.post("/roster/status", unit_id="nobody", status="OFF")
        assert status == 404 and TEXTS["roster_404"][0] in page
        page = await police.read("/roster")
        assert page.count("data-office=") == 1 and page.count("data-unit=") == 1, "nothing is half done"


async def test_a_desk_issues_a_units_link_and_a_code_for_her_phone_each_shown_once(opened: OpenedDesk) -> None:
    unit = {"unit_id": "car-9", "office_id": "seoul-1", "unit_class": "patrol-car", "version": "0"}
    async with opened.bench.visitor("police") as police, server.channel(opened.registry.address) as channel:
        shift = {"shift_from": "2026-03-02T18:00", "shift_until": "2099-03-03T09:00"}
        await police.read("/roster")
        assert (await police.post("/roster/units", **unit, **shift))[0] == 303
        status, page = await police.post("/roster/unit-link", unit_id="car-9")
        [link] = re.findall(r'id="secret">([^<]+)<', page)
        assert status == 200 and link.startswith("police.") and link not in await police.read("/roster")
        over = {**unit, "unit_id": "car-10", "shift_from": "2026-03-01T18:00", "shift_until": "2026-03-02T09:00"}
        assert (await police.post("/roster/units", **over))[0] == 303
        status, page = await police.post("/roster/unit-link", unit_id="car-10")
        assert status == 409 and TEXTS["phones_SHIFT_OVER"][0] in page
        assert (await police.post("/roster/unit-link", unit_id="nobody"))[0] == 404
        status, page = await police.post("/roster/unit-link", unit_id="")
        assert status == 400 and TEXTS["phones_wrong_unit_id"][0] in page
        assert (await police.post("/roster/distress-end", unit_id="car-9"))[0] == 303
        await registry_pb2_grpc.RegistryServiceStub(channel).PutDevice(
            registry_pb2.PutDeviceRequest(device=records.device("app-9")), metadata=server.bearer(NPA, SECRET)
        )
        status, page = await police.post("/people/phone-code", device_id="app-9")
        assert status == 200 and re.search(r'id="secret">[2-9A-Z]{4}-[2-9A-Z]{4}-[2-9A-Z]{4}<', page)
        status, page = await police.post("/people/phone-code", device_id="tag-1")
        assert status == 403 and TEXTS["phones_403"][0] in page
        assert (await police.post("/people/phone-code", device_id="nobody"))[0] == 404
    async with opened.bench.visitor("probation") as probation:
        await probation.read("/people")
        assert (await probation.post("/people/phone-code", device_id="app-9"))[0] == 403


async def test_korean_pages_have_no_english_word(opened: OpenedDesk) -> None:
    async with opened.bench.visitor("police", "kim") as police:
        for path in ("/handover", "/people", "/orders/o-unknown", "/roster", "/watched-devices"):
            (main,) = re.findall(r"<main.*?</main>", await police.read(path), re.S)
            text = re.sub(
                r"<(code|option)[^>]*>.*?</\1>|<article.*?</article>|<tr data-.*?</tr>|<[^>]+>", " ", main, flags=re.S
            )
            assert set(re.findall(r"[A-Za-z]{2,}", text)) <= {"seoul"}, (path, text)
        async with opened.bench.visitor("police") as english:
            english.client.cookie_jar.update_cookies({"tandem_language": "en"})
            assert TEXTS["handover_write"][1] in await english.read("/handover")
