"""Which simulated process runs now.

asyncio is told only when another process runs than before, because in Python 3.11 each telling asks the operating system for the number
of the (operating system) process, as does each question. A host has asyncio's questions answered here, so that between the turns of all
processes no loop runs, although asyncio's own variable still has the last one.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, events


class _Running:
    """The one loop whose code runs."""

    __slots__ = ("loop", "of_asyncio")

    def __init__(self) -> None:
        self.loop: AbstractEventLoop | None = None
        self.of_asyncio: AbstractEventLoop | None = None
        """The loop that asyncio knows of."""


_running = _Running()


def running_loop() -> AbstractEventLoop | None:
    """The loop of the process that runs now; None between the turns of all processes."""
    return _running.loop


def get_running_loop() -> AbstractEventLoop:
    """In the place of asyncio's function, which asks the operating system, too."""
    if _running.loop is None:
        raise RuntimeError("no running event loop")
    return _running.loop


def become(loop: AbstractEventLoop | None) -> None:
    """Lets the code that follows run in a loop, or in none."""
    _running.loop = loop
    if loop is not None and loop is not _running.of_asyncio:
        _running.of_asyncio = loop
        events._set_running_loop(loop)


def leave() -> None:
    """Lets the code that follows run outside of the world: asyncio, too, sees no loop."""
    _running.loop = _running.of_asyncio = None
    events._set_running_loop(None)
