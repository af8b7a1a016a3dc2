"""`tandem demo --phones` with its three pages in Chromium: an incident from the approach to its end with nobody at a desk.

`make test-browser` runs it; it needs Chromium and Node.js. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.browser.driver import Browser, browser
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh
from tests.support.field.her_page import PRESENT
from tests.support.field.scene import until
from tests.support.field.shots import shot
from tests.support.field.unit import UNHURRIED

pytestmark = [
    pytest.mark.browser,
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HOME = {"latitude": 37.6360, "longitude": 127.2165, "accuracy": 8}
NEAR = {"latitude": 37.6400, "longitude": 127.2165, "accuracy": 8}
LEGS = ("probation", "police")
ENDS_WITHIN_S = 600.0
"""Maximum time from the units' last answer until the command ends, seconds: the wearer drives off, and her phone's positions agree."""
NEXT_STEP = """(() => {
    const task = document.querySelector("#tasks .task");
    if (!task) return "";
    const close = task.querySelector(".actions > .pair > button:last-of-type");
    const button = task.querySelector("button[data-cause='breach_confirmed']")
        ?? (task.dataset.state === "on_scene" ? close : task.querySelector("button.main"));
    button?.click();
    return task.dataset.state;
})()"""
"""Presses the button that leads the first assignment of a unit's page on: accept, drive, arrive, close, say why."""


class Demo:
    """The running command, and the lines that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def read(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())

    async def line(self, pattern: str) -> re.Match[str]:
        """The first line that matches, once it is printed."""

        async def found() -> re.Match[str] | None:
            assert self.process.returncode is None, self.lines
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        match: re.Match[str] = await until(found)
        return match


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, packages: None) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("demo") / "mesh", settings=UNHURRIED) as running:
        yield running


@asynccontextmanager
async def demo(mesh: RunningMesh) -> AsyncIterator[Demo]:
    """`tandem demo --phones`, whose browser is the test's own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "demo", "--phones", "--dir", str(mesh.folder)),
        env={**os.environ, "BROWSER": "true", "PYTHONUNBUFFERED": "1", "COLUMNS": "250"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    made = Demo(process)
    reading = asyncio.create_task(made.read())
    try:
        yield made
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def said(seen: Browser, page: str, selector: str) -> str:
    return " ".join(await seen("text", page=page, selector=selector))


@pytest.mark.timeout(1_200)
async def test_an_incident_ends_by_phones_alone_and_she_reads_what_happened(mesh: RunningMesh) -> None:
    async with browser() as seen, demo(mesh) as running:
        hers = await running.line(r"app: (\S+)\s+\(code (\S+)\)")
        await seen("phone", page="hers", url=hers[1], language="ko", at=HOME)
        await seen("wait", page="hers", selector="#enrol:not([hidden])")
        await seen("fill", page="hers", selector="#code", value=hers[2])
        await seen("click", page="hers", selector="#enrol-form button")
        await seen("wait", page="hers", selector="#state[data-sent]:not([data-sent='0'])")
        for leg in LEGS:
            link = await running.line(rf"page of the {leg} unit: (\S+)")
            await seen("phone", page=leg, url=link[1], language="ko", at=NEAR)
            await seen("click", page=leg, selector="#sign-in-now")
            await seen("wait", page=leg, selector="#duty:not([hidden])")
        await running.line("accept, drive, arrive and close on both pages")
        await seen("wait", page="hers", selector=PRESENT)
        await shot(seen, "hers", "phones-demo-her-notice-ko")
        for leg in LEGS:
            await seen("wait", page=leg, selector="#tasks .task")
            await shot(seen, leg, f"phones-demo-{leg}-offer-ko")
        states: dict[str, set[str]] = {leg: set() for leg in LEGS}
        async with asyncio.timeout(PATIENCE_S):
            while not any("nobody was at a desk" in line for line in running.lines):
                assert running.process.returncode is None, running.lines
                for leg in LEGS:
                    state = str(await seen("eval", page=leg, expression=NEXT_STEP))
                    if state == "on_scene" and state not in states[leg]:
                        await shot(seen, leg, f"phones-demo-{leg}-on-scene-ko")
                    states[leg].add(state)
                await asyncio.sleep(0.2)
        for leg in LEGS:
            assert {"offered", "en_route", "on_scene"} <= states[leg] | {"offered"}, states
        async with asyncio.timeout(ENDS_WITHIN_S):
            assert await running.process.wait() == 0, "\n".join(running.lines[-30:])

        async def summed_up() -> bool:
            return "도착했습니다" in await said(seen, "hers", "#after-said")

        await until(summed_up)
        text = await said(seen, "hers", "#after-said")
        assert text.count(".") == 2 and "112" in text and "Demo" not in text
        assert [fault for fault in await seen("axe", page="hers") if fault["impact"] in ("serious", "critical")] == []
        await seen("eval", page="hers", expression="void document.querySelector('#afterwards').scrollIntoView()")
        await shot(seen, "hers", "phones-demo-her-summary-ko")
