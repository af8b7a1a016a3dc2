"""Work that a mesh puts off under load: how much waits, and when it is caught up after the load."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from bench.mesh import budget, machine
from bench.mesh.budget import Interval
from services.client.mesh import MeshConnection
from services.local import processes

WATCHED_S = 60
"""Time for which a mesh is watched after a load, seconds."""
LEVEL_S = 15
"""Last part of that time, whose mean is the level that the mesh comes to."""
WINDOW_S = 3
"""Seconds that are averaged, so that one quiet second doesn't count as caught up."""
SLACK, SLACK_MS = 1.25, 20.0
"""A second is at the level if it takes at most 1.25 times as much and 20 ms more."""
_WAITING = "tandem_work_waiting"


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What a mesh did after a load."""

    after_s: float
    """When its processor time had come down to the level that it kept; infinite if it was still above half of the machine."""
    level_ms: float
    """That level, milliseconds of processor time each second."""
    waiting: float
    """Blocks of work that waited for admission when the load ended; NaN if no process tells."""
    waiting_until_s: float
    """When none waited any more; infinite if some still waited at the end, NaN if no process tells."""


def level_after_s(rates_ms: Sequence[float], cores: int) -> tuple[float, float]:
    """When processor time came down to its level, and the level, from the milliseconds of each second after a load.

    Unanswered incidents escalate, so the level isn't that of an idle mesh.
    """
    level_ms = statistics.fmean(rates_ms[-LEVEL_S:])
    if level_ms > cores * 1000 / 2:
        return math.inf, level_ms
    most_ms = SLACK * level_ms + SLACK_MS
    for second in range(len(rates_ms) - WINDOW_S, -1, -1):
        if statistics.fmean(rates_ms[second : second + WINDOW_S]) > most_ms:
            return float(second + WINDOW_S), level_ms
    return 0.0, level_ms


async def watch(running: MeshConnection, pids: Mapping[str, int], cores: int) -> CaughtUp:
    """Watches a mesh for a minute after a load."""
    began_s = time.monotonic()
    rates_ms = list[float]()
    waiting = [await asyncio.to_thread(blocks_waiting, running)]
    last_s, last = began_s, machine.usage(pids)
    for second in range(1, WATCHED_S + 1):
        await asyncio.sleep(max(began_s + second - time.monotonic(), 0.0))
        now_s, now = time.monotonic(), machine.usage(pids)
        rates_ms.append(Interval(now_s - last_s, now.since(last).by_process).rates_ms()[budget.TOTAL])
        last_s, last = now_s, now
        waiting.append(await asyncio.to_thread(blocks_waiting, running))
    after_s, level_ms = level_after_s(rates_ms, cores)
    return CaughtUp(after_s, level_ms, waiting[0], none_waits_after_s(waiting))


def none_waits_after_s(waiting: Sequence[float]) -> float:
    """The first second from which on nothing waits; infinite if something waits in the last one, NaN if it isn't known."""
    if any(math.isnan(blocks) for blocks in waiting):
        return math.nan
    if waiting[-1]:
        return math.inf
    return float(max((second + 1 for second, blocks in enumerate(waiting) if blocks), default=0))


def blocks_waiting(running: MeshConnection) -> float:
    """Blocks of sharing and record work that wait for admission, of all processes; NaN if no process tells."""
    name, address = next(iter(running.addresses.items()))
    offset = next(service.offset for service in processes.SERVICES if service.name == name)
    ports = processes.other_addresses(processes.SERVICES, int(address.rpartition(":")[2]) - offset)
    found = [
        sample.value
        for purpose, url in ports.items()
        if purpose.endswith(": metrics")
        for family in text_string_to_metric_families(_read(f"{url}/metrics"))
        for sample in family.samples
        if sample.name == _WAITING
    ]
    return sum(found) if found else math.nan


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5.0) as answer:  # noqa: S310  # an address of this mesh
        return str(answer.read().decode())
