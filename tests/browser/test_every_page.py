"""Each page of the console on a real mesh: in Korean and English, light and dark, at the widths of a desk's screens.

Axe finds nothing serious, each page fits its window, and the Korean console has no English word. With TANDEM_SHOTS it saves pictures.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, NamedTuple, cast

import pytest
import pytest_asyncio

from services.client import demo
from services.client import mesh as meshes
from services.client.actors import Alerts
from services.console.mesh import MeshClient
from services.console.pages.guard import RouteGuard
from services.console.routes import console_routes
from services.console.settings import ConsoleSettings
from tests.browser.driver import HERE, Browser, browser
from tests.browser.visited import NO_PAGES, PAGES, VisitedPage
from tests.support.common.mesh import PATIENCE_S, RunningMesh
from tests.support.console.korean import LATIN_ALLOWED
from tests.support.registry.undecided import put_undecided_records

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = HERE.parents[1]
ROLES = ("police", "probation", "reviewer", "operator", "police-records")
LANGUAGES = ("ko", "en")
THEMES = ("light", "dark")
WIDTHS = (1440, 1920)
HEIGHT = 900
TEXTS_OF_THE_PAGE = """(() => {
    const left = "script, style, code, time, [lang=en], .maplibregl-map";
    const texts = [document.title];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) if (!walker.currentNode.parentElement.closest(left)) texts.push(walker.currentNode.data);
    for (const name of ["title", "aria-label", "placeholder", "alt"])
        for (const element of document.body.querySelectorAll(`[${name}]`))
            if (!element.closest(left)) texts.push(element.getAttribute(name));
    return texts;
})()"""
WORD = re.compile(r"[A-Za-z0-9_./:'-]*[A-Za-z][A-Za-z0-9_./:'-]*")


class Toured(NamedTuple):
    """A mesh in the middle of the demo, with an undecided match review, and a browser with each role in both languages."""

    url: str
    browser: Browser
    ids: dict[str, str]
    """Ids in the paths of the pages."""

    async def reach(self, page: VisitedPage, language: str) -> str:
        """Opens a page and returns the name of its tab. What isn't there yet, such as a copy of the evidence, is waited for."""
        tab = f"{page.role or 'nobody'}-{language}"
        async with asyncio.timeout(PATIENCE_S):
            while True:
                path = page.path.format(**self.ids)
                status = await self.browser("open", page=tab, url=self.url + path, language=language)
                assert status == page.status, (page, status)
                with suppress(AssertionError):
                    for selector in page.clicks:
                        await self.browser("click", page=tab, selector=selector)
                    await self.browser("wait", page=tab, selector=page.shows)
                    return tab

    async def english_words(self, tab: str) -> set[str]:
        """Latin words of the page that aren't allowed."""
        texts = await self.browser("eval", page=tab, expression=TEXTS_OF_THE_PAGE)
        words = {word.strip("./:'-_") for text in texts for word in WORD.findall(text)}
        return {word for word in words if word and not re.search("[0-9]", word)} - LATIN_ALLOWED


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def toured(mesh: RunningMesh) -> AsyncIterator[Toured]:
    plan = demo.new_plan()
    async with (
        browser() as seen,
        meshes.connect(mesh.now) as clients,
        demo.stage(clients, plan) as stage,
        Alerts(clients, (plan.id("order"),)) as alerts,
    ):
        await put_undecided_records(clients)
        for name, _, act in demo.STEPS:
            await act(stage)
            if name == "respond":
                break
        incident_id = next(seen.alert.incident_id for seen in alerts.seen if seen.alert.incident_id)
        for role in ROLES:
            for language in LANGUAGES:
                await seen.sign_in(f"{role}-{language}", mesh.now.console_url, role, language)
        yield Toured(
            mesh.now.console_url, seen, {"incident": incident_id, "order": plan.id("order"), "tag": plan.id("tag")}
        )


async def test_each_page_is_visited() -> None:
    settings = ConsoleSettings(dev_secret="x")
    routes = console_routes(settings, RouteGuard(settings, [bytes(32)]), cast(MeshClient, None), feeds={})
    paths = [route.path for route in routes if route.method == "GET" and route.path not in NO_PAGES]
    visited = [page.path.partition("?")[0] for page in PAGES if page.status == 200]
    missing = [path for path in paths if not any(re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), at) for at in visited)]
    assert missing == []


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_each_page_is_accessible_fits_and_speaks_its_language(toured: Toured, language: str, theme: str) -> None:
    found: dict[str, list[Any]] = {}
    for page in PAGES:
        tab = f"{page.role or 'nobody'}-{language}"
        await toured.browser("prefer", page=tab, scheme=theme, language=language)
        await toured.reach(page, language)
        where = f"{page.role} {page.path} {' '.join(page.clicks)}"
        for width in WIDTHS:
            await toured.browser("resize", page=tab, width=width, height=HEIGHT)
            for finding in await toured.browser("axe", page=tab):
                if finding["impact"] in ("serious", "critical"):
                    found.setdefault(f"{where} at {width}", []).append(finding)
            beyond = await toured.browser(
                "eval", page=tab, expression="document.documentElement.scrollWidth - innerWidth"
            )
            if beyond > 0:
                found.setdefault(f"{where} at {width}", []).append(f"{beyond} px too wide")
        if language == "ko" and (words := await toured.english_words(tab)):
            found.setdefault(where, []).append(f"English: {sorted(words)}")
        folder = os.environ.get("TANDEM_SHOTS")
        if folder and page.shot and (language, theme) == ("ko", "dark"):
            await toured.browser("shot", page=tab, path=f"{ROOT / folder}/{page.shot}.png")
    for where, findings in found.items():
        print(f"{language} {theme} {where}: {findings}")
    assert found == {}


async def test_the_switch_keeps_a_theme_in_the_browser(toured: Toured) -> None:
    tab = await toured.reach(VisitedPage("police", "/search?text=nothing"), "ko")
    ground = (
        "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).reduce((sum, part) => sum + Number(part), 0)"
    )
    await toured.browser("prefer", page=tab, scheme="light")
    assert await toured.browser("eval", page=tab, expression=ground) > 600
    await toured.browser("click", page=tab, selector=".to-dark")
    await toured.browser("wait", page=tab, selector="html[data-theme=dark]")
    assert await toured.browser("eval", page=tab, expression=ground) < 150
    assert await toured.browser("eval", page=tab, expression="location.search") == "?text=nothing"
    await toured.reach(VisitedPage("police", "/devices"), "ko")
    assert await toured.browser("eval", page=tab, expression=ground) < 150
    await toured.browser("click", page=tab, selector=".to-light")
    await toured.browser("wait", page=tab, selector="html[data-theme=light]")
    await toured.browser("prefer", page=tab, scheme="dark")
    assert await toured.browser("eval", page=tab, expression=ground) > 600
    assert (await toured.browser("seen"))["origins"] == [toured.url]
