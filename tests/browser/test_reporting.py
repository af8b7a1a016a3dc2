"""The operators' pages of devices in a real browser: readable, reachable by keyboard, without a serious finding.

The devices are those of fake services, so no mesh is needed. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.browser.driver import HERE, Browser, browser
from tests.support.console.console import ConsoleBench
from tests.support.console.devices import example, operators_bench

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = HERE.parents[1]
WORST = "tr[data-device=tag-1182]"


class Opened(NamedTuple):
    """A console with devices, and a browser in which an operator is signed in: page `en` in English, `ko` in Korean."""

    url: str
    browser: Browser

    async def shot(self, page: str, name: str) -> None:
        """Saves a picture for the documentation, where TANDEM_SHOTS is set."""
        if folder := os.environ.get("TANDEM_SHOTS"):
            await self.browser("shot", page=page, path=f"{ROOT / folder}/{name}.png")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory, packages: None) -> AsyncIterator[Opened]:
    folder = tmp_path_factory.mktemp("browser")
    async with operators_bench(folder, example()) as bench, browser() as seen:
        await _sign_in(bench, seen)
        yield Opened(bench.url, seen)


async def _sign_in(bench: ConsoleBench, seen: Browser) -> None:
    for language in ("en", "ko"):
        await seen.sign_in(language, bench.url, "operator", language)


async def test_the_worst_device_is_first_and_its_page_is_reached_by_keyboard(opened: Opened) -> None:
    seen = opened.browser
    await seen("click", page="en", selector="nav a[href='/reporting']")
    await seen("wait", page="en", selector=WORST)
    (worst, *others) = await seen("text", page="en", selector="#conspicuous tbody tr")
    assert "Doesn't obey" in worst and "15 s" in worst and "62 s" in worst and "Observed 48 m" in worst
    assert len(others) == 6
    await opened.shot("en", "console-reporting")
    await seen("eval", page="en", expression=f"document.querySelector('{WORST} a').focus()")
    await seen("press", page="en", key="Enter")
    await seen("wait", page="en", selector="#history")
    assert await seen("text", page="en", selector="#requested") == ["15 s"]
    assert await seen("text", page="en", selector="#obeyed") == ["No"]
    await opened.shot("en", "console-reporting-device")
    await seen("click", page="en", selector="main a[href='/reporting']")
    await seen("wait", page="en", selector="#conspicuous")


async def test_the_filter_leaves_the_devices_with_one_problem(opened: Opened) -> None:
    seen = opened.browser
    await seen("open", page="en", url=f"{opened.url}/reporting?problem=slow")
    rows = await seen("text", page="en", selector="#conspicuous tbody tr")
    assert len(rows) == 4 and all("Reports too seldom" in row for row in rows)


async def test_the_pages_fit_the_window_and_have_no_serious_finding_in_either_language(opened: Opened) -> None:
    seen = opened.browser
    for page in ("en", "ko"):
        for path in ("/reporting", "/reporting/tag-0417", "/reporting?text=nothing"):
            assert await seen("open", page=page, url=f"{opened.url}{path}", language=page) == 200
            found = await seen("axe", page=page)
            assert [finding for finding in found if finding["impact"] in ("serious", "critical")] == []
            width = await seen("eval", page=page, expression="document.documentElement.scrollWidth - innerWidth")
            assert width <= 0, (page, path)
    await seen("open", page="ko", url=f"{opened.url}/reporting")
    assert "요청 미이행" in (await seen("text", page="ko", selector="#conspicuous tbody tr"))[0]
    await opened.shot("ko", "console-reporting-ko")
    faults = (await seen("seen"))["faults"]
    assert faults == []
