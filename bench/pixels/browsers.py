"""Live pages of both desks in Chromium, which note when each demand to respond is drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.browser.driver import Browser

DESKS = ("probation", "police")
READY_WITHIN_S = 60.0
"""Maximum time in which the maps open, which happens once at the begin of a shift, seconds."""
WARM_UP_S = 5.0
"""Time after that in which the pages come to rest, seconds."""
WATCH = """(() => {
    window.drawn = {}; window.tasks = [];
    const list = document.querySelector("#incidents");
    const look = () => {
        for (const tag of list.querySelectorAll("li[data-incident] .demand-RESPOND")) {
            const id = tag.closest("li").dataset.incident;
            if (id in window.drawn) continue;
            window.drawn[id] = null;
            // A frame's callbacks run before it is painted, and a task after them once it was.
            requestAnimationFrame(() => setTimeout(() => {
                window.drawn[id] = performance.timeOrigin + performance.now();
            }));
        }
    };
    new MutationObserver(look).observe(list, {childList: true, subtree: true});
    look();
    new PerformanceObserver((found) => window.tasks.push(...found.getEntries().map((entry) => entry.duration)))
        .observe({type: "longtask", buffered: false});
})()"""
"""Script that notes when each row that demands a response was painted, milliseconds since 1970 UTC, and the page's long tasks."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a desk's page has shown."""

    drawn_ms: Mapping[str, float]
    """When each incident was painted, milliseconds since 1970 UTC, by incident id."""
    long_tasks_ms: tuple[float, ...]
    """Lengths of the tasks of more than 50 ms."""
    heap_mb: float
    """Heap of the page after a garbage collection, MB."""


async def open_desks(chromium: Browser, url: str) -> None:
    """Opens both desks' live pages, and begins to watch them once their maps are drawn."""
    for desk in DESKS:
        await chromium.sign_in(desk, url, desk)
        await chromium("wait", page=desk, selector="#connection.ok")
        await chromium.until(desk, "document.querySelector('#map[data-ready]')", READY_WITHIN_S)
    await asyncio.sleep(WARM_UP_S)
    for desk in DESKS:
        await chromium("eval", page=desk, expression=WATCH)


async def seen_by(chromium: Browser, desk: str) -> Seen:
    """What a desk's page has shown so far."""
    found: dict[str, Any] = await chromium("eval", page=desk, expression="({drawn: {...drawn}, tasks: [...tasks]})")
    drawn = {incident: at_ms for incident, at_ms in found["drawn"].items() if at_ms is not None}
    return Seen(drawn, tuple(found["tasks"]), await chromium("heap", page=desk) / 1e6)
