"""A simulated process: an event loop with a name, a disk and connections, which ends when it crashes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from tests.simulation.kernel.loop import SimulatedLoop
from tests.simulation.kernel.network import Network
from tests.simulation.kernel.running import leave, running_loop
from tests.simulation.kernel.world import SECOND_NS, World

Main = Callable[[], Coroutine[Any, Any, None]]


class ProcessLoop(SimulatedLoop):
    """The event loop of one run of a process."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.world, process.name)
        self.process = process


class Process:
    """A process of the mesh or of an actor. It can crash at any await and start again on the same disk."""

    def __init__(self, world: World, network: Network, name: str, main: Main) -> None:
        self.world = world
        self.network = network
        self.name = name
        self.starts = 0
        """Number of starts so far."""
        self.started_s = 0.0
        """When this run started, seconds since the world's start."""
        self.loop = ProcessLoop(self)
        self.clients: dict[object, int] = {}
        """NATS clients of this run."""
        self.skew_ns = 0
        """How far the wall clock of this process is ahead of the world's, nanoseconds."""
        self.disk_error_share = 0.0
        """Share of database statements that fail, 0 to 1."""
        self.connections: list[sqlite3.Connection] = []
        """Open databases of this run."""
        self.is_migrating = False
        """Whether database statements run at once, without other turns between them."""
        self.exits: list[BaseException | None] = []
        """Errors with which runs ended by themselves."""
        self.facts: dict[str, Any] = {}
        """Objects that judges read, such as the running evaluator."""
        self.restart_s: tuple[float, float] = (0.2, 2.0)
        """Least and greatest time until the supervisor starts the process again, seconds."""
        self._main = main
        self.is_wanted = True
        """Whether the supervisor starts the process again after its end."""

    @property
    def is_up(self) -> bool:
        """Whether the process runs."""
        return self.starts > 0 and not self.loop.is_dead

    def start(self) -> None:
        """Starts the process on its disk."""
        if self.is_up:
            return
        self.starts += 1
        self.started_s = self.world.elapsed_s
        loop = self.loop = ProcessLoop(self)
        loop.on_crash = self.crash
        self.clients = {}
        self.connections = []
        self.facts = {}
        self.world.note(f"start {self.name}")

        async def run() -> None:
            try:
                await self._main()
            except BaseException as error:
                self._ended(error)
            else:
                self._ended(None)

        def begin() -> None:
            self.facts["main"] = loop.create_task(run())

        loop.enter(begin)
        leave()  # a process may start before its world runs

    def _ended(self, error: BaseException | None) -> None:
        self.exits.append(error)
        self.world.note(f"exit {self.name} {type(error).__name__}")
        self.loop.world.after(0.0, self.crash)

    def crash(self) -> None:
        """Kills the process at once, as SIGKILL does, and lets the supervisor start it again later."""
        if not self.is_up:
            return
        self.world.note(f"crash {self.name}")
        self.loop.kill()
        self.network.died(self.name)
        for connection in self.connections:
            with suppress(sqlite3.Error):
                connection.rollback()  # a closed connection keeps its locks while a cursor of it is left
            connection.close()
        if self.is_wanted:
            self.world.after(self.world.between(*self.restart_s), self.start)

    def crash_within(self, callbacks: int) -> None:
        """Kills the process after a number of its callbacks: at any await."""
        self.loop.crash_after = callbacks

    def pause(self, seconds: float) -> None:
        """Stops the process for a time, as SIGSTOP does."""
        self.loop.paused_until_ns = self.world.now_ns + int(seconds * SECOND_NS)


def current() -> Process:
    """The process whose code runs now."""
    process = running()
    assert process is not None, "no simulated process runs"
    return process


def running() -> Process | None:
    """The process whose code runs now; None outside of all."""
    loop = running_loop()
    return loop.process if isinstance(loop, ProcessLoop) else None
