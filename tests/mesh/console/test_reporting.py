"""The operators' pages of devices, served by a console with fake services: content, filters, roles, and services that are away."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.console.pages.texts import TEXTS
from tests.support.console.console import ConsoleBench
from tests.support.console.devices import FakeDevices, example, operators_bench

pytestmark = pytest.mark.asyncio(loop_scope="module")
DEVICES = example()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConsoleBench]:
    async with operators_bench(tmp_path_factory.mktemp("console"), DEVICES) as running:
        yield running


def shown(text: str) -> list[str]:
    """Ids of the devices of a page, in its order."""
    return re.findall(r'data-device="([^"]+)"', text)


async def test_devices_with_a_problem_are_listed_the_worst_first_from_all_pages_of_both_services(
    bench: ConsoleBench,
) -> None:
    async with bench.visitor("operator") as operator:
        text = await operator.read("/reporting")
        # Asked for 15, 30, 45 and 60 s without obeying; then the contradicted accuracy; then the slow ones.
        assert shown(text) == ["tag-1182", "tag-0417", "tag-2090", "app-7730", "tag-5233", "tag-5140", "tag-5310"]
        assert dict(re.findall(r'data-count="(\w+)"><a [^>]*>(\d+)<', text)) == {
            "disobeys": "4",
            "accuracy": "2",
            "slow": "4",
        }
        assert "interval below 60 s isn&#39;t supported by this firmware" in text
        assert DEVICES.callers == {"spiffe://tandem/operator/console/duty-1"}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("problem=accuracy", ["tag-1182", "tag-5233"]),
        ("problem=slow&text=APP", ["app-7730"]),
        ("text=%3Cscript%3E", []),
    ],
)
async def test_the_filter_keeps_the_order(bench: ConsoleBench, query: str, expected: list[str]) -> None:
    async with bench.visitor("operator") as operator:
        text = await operator.read(f"/reporting?{query}")
        assert shown(text) == expected
        assert "<script>" not in text.partition("<main")[2]
        assert (TEXTS["reporting_none_found"][0] in text) is (not expected)


async def test_a_device_has_its_request_its_delivery_what_it_does_and_its_history(bench: ConsoleBench) -> None:
    async with bench.visitor("operator") as operator:
        text = await operator.read("/reporting/tag-0417")
        facts = dict(re.findall(r'<dd id="(\w+)">(.*?)</dd>', text))
        assert facts["requested"] == "30초" and facts["kept"] == "3분 6초"
        assert TEXTS["delivery_RECEIVED"][0] in facts["delivered"] and facts["obeyed"] == TEXTS["obeys_NO"][0]
        history = text.partition('<table id="history">')[2]
        kinds = ("report_every", "locate_now", "report_as_usual")
        assert all(TEXTS[f"command_{kind}"][0] in history for kind in kinds) and "busy" in history
        nothing = await operator.read("/reporting/tag-5140")
        assert TEXTS["obeys_NOT_ASKED"][0] in nothing and TEXTS["not_asked"][0] in nothing


async def test_an_unknown_device_and_a_wrong_address_are_refused(bench: ConsoleBench) -> None:
    async with bench.visitor("operator") as operator:
        assert (await operator.get("/reporting/nobody"))[0] == 404
        assert (await operator.get("/reporting/a%20b"))[0] == 400
        assert (await operator.get("/reporting?problem=all"))[0] == 400


@pytest.mark.parametrize("role", ["police", "probation", "reviewer"])
async def test_other_roles_are_refused(bench: ConsoleBench, role: str) -> None:
    async with bench.visitor(role) as other:
        assert (await other.get("/reporting"))[0] == 403
        assert (await other.get("/reporting/tag-0417"))[0] == 403


async def test_no_problem_is_said_in_words_and_a_partial_list_never_is(tmp_path: Path) -> None:
    fine = FakeDevices(tags=[])  # type: ignore[abstract]  # the console calls no other methods
    async with operators_bench(tmp_path, fine) as bench, bench.visitor("operator") as operator:
        assert TEXTS["reporting_none"][0] in await operator.read("/reporting")
        fine.missing_partitions.append(1)
        text = await operator.read("/reporting")
        assert TEXTS["reporting_none"][0] not in text and TEXTS["reporting_partial"][0] in text


async def test_a_service_that_is_away_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    async with (
        operators_bench(tmp_path, example(), without="GEOFENCE") as bench,
        bench.visitor("operator") as operator,
    ):
        text = await operator.read("/reporting")
        assert TEXTS["away_geofence"][0] in text
        assert shown(text) == ["tag-1182", "tag-0417", "tag-2090", "app-7730"]
        assert TEXTS["away_geofence"][0] in await operator.read("/reporting/tag-0417")
