"""Pages of protected persons and units in Chromium, which note when each notice and each offer is painted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench.mesh.population import Party
from tests.browser.driver import Browser

PAINTED = """((list, items, key) => {
    window.painted = {};
    const check = () => {
        for (const item of document.querySelectorAll(items)) {
            const id = item.dataset[key];
            if (id in window.painted) continue;
            window.painted[id] = null;
            // A frame's callbacks run before it is painted, and a task after them once it was.
            requestAnimationFrame(() => setTimeout(() => {
                window.painted[id] = performance.timeOrigin + performance.now();
            }));
        }
    };
    new MutationObserver(check).observe(document.querySelector(list), {childList: true, subtree: true});
    check();
})"""
"""Function that notes when each item of a list was painted, milliseconds since 1970 UTC, by its id."""
HER_LIST = ("#instruction", "#present[data-notice]:not([data-notice=''])", "notice")
UNITS_LIST = ("#tasks", ".task", "assignment")
"""Lists of both apps: the list, its items, and the name of their ids. Her app has one instruction at a time."""


async def open_her_app(chromium: Browser, url: str, case: Party, *, code: str) -> None:
    """Connects the phone of a case's protected person in a page, which reports from her home from then on."""
    page = her_page(case)
    await chromium("phone", page=page, url=f"{url}/", language="ko", at=_place(*case.home))
    await chromium("wait", page=page, selector="#enrol:not([hidden])")
    await chromium("fill", page=page, selector="#code", value=code)
    await chromium("click", page=page, selector="#enrol-form button")
    await chromium("wait", page=page, selector="#state[data-sent]:not([data-sent='0'])")
    await _watch(chromium, page, HER_LIST)


async def open_unit(chromium: Browser, url: str, unit_id: str, *, code: str, at: tuple[float, float]) -> None:
    """Starts the shift of a unit in a page, which reports from a place from then on."""
    await chromium("phone", page=unit_id, url=f"{url}/unit/#{code}", language="ko", at=_place(*at))
    await chromium("wait", page=unit_id, selector="#sign-in-now:not([hidden])")
    await chromium("click", page=unit_id, selector="#sign-in-now")
    await chromium("wait", page=unit_id, selector="#position[data-sent]:not([data-sent='0'])")
    await _watch(chromium, unit_id, UNITS_LIST)


async def painted_on(chromium: Browser, page: str) -> dict[str, float]:
    """When each item of a page was painted so far, milliseconds since 1970 UTC, by its id."""
    found: Mapping[str, Any] = await chromium("eval", page=page, expression="({...window.painted})")
    return {id_: at_ms for id_, at_ms in found.items() if at_ms is not None}


def her_page(case: Party) -> str:
    """Name of the page of a case's protected person."""
    return f"hers-{case.number}"


async def _watch(chromium: Browser, page: str, names: tuple[str, str, str]) -> None:
    given = ", ".join(map(json.dumps, names))
    await chromium("eval", page=page, expression=f"{PAINTED}({given})")


def _place(lat_deg: float, lon_deg: float) -> dict[str, float]:
    return {"latitude": lat_deg, "longitude": lon_deg, "accuracy": 8}
