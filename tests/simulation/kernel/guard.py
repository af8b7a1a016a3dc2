"""Guard against the machine in a simulated world: it finds readings of real time and entropy, threads, and sets ordered by address.

Whatever comes from the machine differs in each run, and so does the digest. A world under guard takes about five times as long.
"""

from __future__ import annotations

import _random
import _thread
import gc
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import date
from enum import Enum
from types import FrameType
from typing import Any

from tests.simulation.kernel.world import World

_SCAN_INTERVAL_S = 60.0
_OWN = ("services.", "tests.", "tandem.", "asyncio.")
_CLOCKS = (
    "time",
    "time_ns",
    "monotonic",
    "monotonic_ns",
    "perf_counter",
    "perf_counter_ns",
    "process_time",
    "process_time_ns",
    "thread_time",
    "thread_time_ns",
    "clock_gettime",
    "clock_gettime_ns",
    "sleep",
)
_TODAY = ("now", "utcnow", "today")
_STARTS_OF_THREADS = ("start_new_thread", "start_joinable_thread")  # the second since Python 3.13
_MACHINE: dict[Any, str] = {
    **{getattr(time, name): f"time.{name}" for name in _CLOCKS},
    os.urandom: "os.urandom",
    os.getrandom: "os.getrandom",
    os.fork: "os.fork",
    **{getattr(_thread, name): "a thread" for name in _STARTS_OF_THREADS if hasattr(_thread, name)},
}
"""Functions of the machine, found when this module is imported: before a world replaces them."""


class Guard:
    """Notes each contact of the simulated code with the machine, until the process ends."""

    def __init__(self, world: World) -> None:
        self.found: dict[str, None] = {}
        """Contacts in the order in which they were found, with the line of code."""
        self._world = world

    def start(self) -> None:
        """Watches all calls from now on, and looks through all sets each minute of the world."""
        self._scan()
        sys.setprofile(self._note)

    def stop(self) -> None:
        """Watches no more calls."""
        sys.setprofile(None)
        self.found.update(dict.fromkeys(sets_by_address()))

    def _scan(self) -> None:
        self.found.update(dict.fromkeys(sets_by_address()))
        self._world.after(_SCAN_INTERVAL_S, self._scan)

    def _note(self, frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call":
            return
        name = _machine_name(frame, function)
        if name:
            self.found[f"{name} in {frame.f_code.co_filename}:{frame.f_lineno}"] = None


def _machine_name(frame: FrameType, function: Any) -> str:
    """Name of the function if it reads the machine, else empty."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type):
        return (
            f"{owner.__name__}.{function.__name__}" if issubclass(owner, date) and function.__name__ in _TODAY else ""
        )
    if isinstance(owner, _random.Random):
        is_entropy = function.__name__ == "seed" and frame.f_locals.get("a") is None
        return "a seed from the machine" if is_entropy else ""
    return _MACHINE.get(function, "") if getattr(owner, "__name__", "") in ("time", "posix", "_thread") else ""


def sets_by_address() -> Iterator[str]:
    """Finds sets of the services or of the simulation whose order depends on addresses, so that it differs in each run."""
    gc.unfreeze()  # frozen objects aren't listed
    for candidate in gc.get_objects():
        if type(candidate) in (set, frozenset):
            for element in list(candidate):
                if _is_own(element) and hashes_by_address(element):
                    yield f"a set of {type(element).__module__}.{type(element).__qualname__}"
                    break


def _is_own(element: object) -> bool:
    kind = getattr(element, "__module__", "") if callable(element) else type(element).__module__
    return not isinstance(element, type) and str(kind).startswith(_OWN)


def hashes_by_address(value: object) -> bool:
    """Whether the hash of a value depends on an address: its own, that of a part, or None's in Python 3.11."""
    if value is None:
        return sys.version_info < (3, 12)
    if isinstance(value, str | bytes | int | float | Enum | type):
        return False
    if isinstance(value, tuple | frozenset):
        return any(map(hashes_by_address, value))
    if type(value).__hash__ is object.__hash__:
        return True
    if is_dataclass(value):
        return any(hashes_by_address(getattr(value, field.name)) for field in fields(value))
    return False
