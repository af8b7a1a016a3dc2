"""The watch over the whole chain: sends canaries, acknowledges the legs' offers of them, and pages when a canary is missing.

The watch observes the chain only from outside: ingest's answer, the alert, each leg's steps. A file keeps the state that must survive a
restart: the exercise with its records, the number of the last wearer, the time of the oldest incomplete canary, and the outage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from services.cli.monitor import canary, probes
from services.cli.monitor.canary import Page, PageKind
from services.cli.monitor.observer import CanaryObserver
from services.cli.monitor.pager import PageMessage, Pager, page_all
from services.cli.monitor.sender import CanarySender
from services.cli.monitor.series import CanarySeries
from services.cli.report import formats
from services.cli.stack.mesh import Clients
from services.common import times
from services.common.ids import hash_id
from services.common.observability.telemetry import logger

CHECK_INTERVAL_S = 1.0


class CanaryWatch:
    """Sends and observes the canaries of one mesh, and pages."""

    def __init__(self, clients: Clients, folder: Path, pagers: Sequence[Pager], *, say: Callable[[str], None]) -> None:
        self._mesh, self._pagers, self._say = clients.mesh, pagers, say
        self._series = CanarySeries(clients, folder)
        self._sender = CanarySender(self._series)
        self._observer = CanaryObserver(clients, self._series)

    async def run(self) -> None:
        """Watches until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._judge())
            tasks.create_task(self._sender.prolong())
            tasks.create_task(self._sender.send())
            tasks.create_task(self._observer.run())

    async def _judge(self) -> None:
        """Judges the canaries every second, and pages until a pager has delivered."""
        series = self._series
        while True:
            before, now_ms = series.state.outage, series.now_ms()
            page = canary.judge(series.state, series.now_s(), now_ms)
            if series.state.outage != before:
                series.save()
            if page is not None:
                silent = () if page.kind is PageKind.BACK else await probes.not_answering(self._mesh)
                message = message_of(page, series.exercise.exercise_id, silent, now_ms=now_ms)
                self._say(message.text)
                logger().critical(
                    "canary_" + page.kind.lower(), last_seen=message.last_seen, outage_id=message.outage_id
                )
                if not self._pagers or await page_all(self._pagers, message):
                    canary.delivered(series.state, page, series.now_ms())
                    series.save()
            await series.sleep(CHECK_INTERVAL_S)


def message_of(page: Page, exercise_id: str, silent: tuple[str, ...], *, now_ms: int) -> PageMessage:
    """The message of a page. `silent` are the processes that don't answer, `now_ms` is mesh time."""
    outage = page.outage
    since = f"{formats.date_time(outage.since_ms)} Korean time"  # as the consoles show it
    if page.kind is PageKind.BACK:
        lasted_s = ((outage.over_ms or now_ms) - outage.since_ms) // 1000
        text = f"Tandem: canaries come through again; they were missing from {since} for {lasted_s} s"
    else:
        lasted_s = (now_ms - outage.since_ms) // 1000
        text = f"Tandem: canaries have been missing since {since} ({lasted_s} s). Last seen: {outage.seen}."
        text += f" Not answering: {', '.join(silent)}." if silent else " All parts answer."
    outage_id = hash_id("outage", exercise_id, outage.since_ms)
    return PageMessage(
        id=hash_id("page", outage_id, page.kind.value, outage.pages),
        kind=page.kind.value,
        text=text,
        outage_id=outage_id,
        since=times.to_rfc3339(outage.since_ms),
        last_seen=outage.seen,
        not_answering=silent,
    )
