"""The event loop of one simulated process.

Callbacks of a loop run in the order in which they were planned, as asyncio promises. What differs by seed is how the turns of several
loops interleave, and how long a turn takes.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any

from tests.simulation.kernel.world import SECOND_NS, START_NS, Event, World

UPTIME_S = 1_000.0
"""Monotonic time at the world's start, seconds: a machine's monotonic clock doesn't begin with the mesh."""
_LoopInterface: Any = asyncio.AbstractEventLoop
TURN_NS = (5_000, 60_000)
"""Duration of a turn, nanoseconds."""
_numbers = itertools.count(1)


class SimulatedTask(asyncio.Task[Any]):
    """A task with a hash that doesn't depend on its address. asyncio keeps tasks in sets and cancels them in the order of the set."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._number = next(_numbers)
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulatedFuture(asyncio.Future[Any]):
    """A future with a hash that doesn't depend on its address."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        self._number = next(_numbers)
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulatedTimer(asyncio.TimerHandle):
    """A timer that knows its event, so that a cancelled timer is no event of the world."""

    __slots__ = ("event",)
    event: Event


class SimulatedLoop(_LoopInterface):  # type: ignore[misc]  # of asyncio's 60 methods, those that the services reach
    """Event loop whose time is the world's. A loop that has crashed never runs anything more."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.is_dead = False
        self.paused_until_ns = 0
        """Until then the process is stopped, as by SIGSTOP, wall time in nanoseconds."""
        self.crash_after: int | None = None
        """Number of callbacks after which the process crashes. None if no crash is planned."""
        self.on_crash: Callable[[], None] = lambda: None
        self.on_unhandled: Callable[[dict[str, Any]], None] = lambda _: None
        """Called with asyncio's context of an exception that no task has handled."""
        self.executor: Callable[[Callable[[], None]], None] | None = None
        """Runs blocking work later. None, the default, runs it within the next turn."""
        self._ready: deque[asyncio.Handle] = deque()
        self._has_turn = False
        self._left_behind: list[Any] = []

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def enter(self, work: Callable[[], None]) -> None:
        """Runs work as a part of this process."""
        if self.is_dead:
            return
        events._set_running_loop(self)
        try:
            work()
        finally:
            events._set_running_loop(None)

    def _plan_turn(self) -> None:
        if not self._has_turn and not self.is_dead:
            self._has_turn = True
            least, most = TURN_NS
            self.world.at_ns(self.world.now_ns + least + int(self.world.random.random() * (most - least)), self._turn)

    def _turn(self) -> None:
        if self.is_dead:
            return
        if self.paused_until_ns > self.world.now_ns:
            self.world.at_ns(self.paused_until_ns, self._turn)
            return
        self._has_turn = False
        self.enter(self._run_ready)
        if self._ready:
            self._plan_turn()

    def _run_ready(self) -> None:
        for _ in range(len(self._ready)):
            if self.crash_after is not None:
                self.crash_after -= 1
                if self.crash_after <= 0:
                    self.crash_after = None
                    self.on_crash()
            if self.is_dead:
                return
            handle = self._ready.popleft()
            if not handle.cancelled():
                if self.world.on_turn:
                    self.world.on_turn(f"{self.world.now_ns} {self.name} {_described(handle)}")
                handle._run()

    def kill(self) -> None:
        """Ends the process at once. Its tasks are kept, so that no `finally` block of them ever runs."""
        with_tasks = asyncio.all_tasks(self)
        self._left_behind.extend(with_tasks)
        self._left_behind.extend(self._ready)
        for task in with_tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.is_dead = True
        _graveyard.append(self)

    # ── asyncio's interface ─────────────────────────────────────────────────────────────────────────────────────────

    def time(self) -> float:
        return UPTIME_S + (self.world.now_ns - START_NS) / SECOND_NS

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        if not self._has_turn:
            self._plan_turn()
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = SimulatedTimer(when, callback, args, self, context)
        # Rounded up: a timer that fires early would find that its time hasn't come.
        due_ns = START_NS + int((when - UPTIME_S) * SECOND_NS) + 1
        timer.event = self.world.at_ns(due_ns, partial(self._fire, timer))
        return timer

    def _fire(self, timer: SimulatedTimer) -> None:
        if not self.is_dead:
            self._ready.append(timer)
            self._plan_turn()

    def _timer_handle_cancelled(self, handle: SimulatedTimer) -> None:
        """asyncio calls it for each cancelled timer."""
        handle.event.cancel()

    def create_future(self) -> asyncio.Future[Any]:
        return SimulatedFuture(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        return SimulatedTask(coro, loop=self, name=name, context=context)

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Runs blocking work in the process itself, as a callback of its own: the simulation has one thread."""
        future = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        if self.executor is None:
            self.call_soon(work)
        else:
            self.executor(work)
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.on_unhandled(context)

    def add_reader(self, fd: object, callback: Callable[..., object], *args: Any) -> None:
        """Refuses: a simulated process has no file descriptors. gRPC would take asyncio's NotImplementedError for the whole run."""
        raise RuntimeError(f"{callback} of the machine waits for {fd} in the simulated process {self.name}")

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:
        """Signals don't reach a simulated process: it crashes or is stopped."""

    async def shutdown_asyncgens(self) -> None:
        """asyncio's runners call it at the end."""


def _described(handle: asyncio.Handle) -> str:
    """A callback in words that don't depend on addresses: its task's number and coroutine, or its function."""
    callback: Any = handle._callback  # type: ignore[attr-defined]
    task = getattr(callback, "__self__", None)
    if isinstance(task, SimulatedTask):
        return f"task {task._number} {getattr(task.get_coro(), '__qualname__', '')}"
    return getattr(callback, "__qualname__", type(callback).__name__)


def _note_generator(generator: AsyncGenerator[Any, Any]) -> None:
    loop = events._get_running_loop()
    if isinstance(loop, SimulatedLoop):
        _loops[id(generator)] = loop


def _finalize_generator(generator: AsyncGenerator[Any, Any]) -> None:
    loop = _loops.pop(id(generator), None)
    if loop is not None and not loop.is_dead:
        loop.create_task(generator.aclose())


_loops: dict[int, SimulatedLoop] = {}
"""Loop of each asynchronous generator that has begun, by its id. An id that is used again is overwritten first."""


def adopt_generators() -> None:
    """Closes forgotten asynchronous generators in the loop that began them, as asyncio's own loops do."""
    sys.set_asyncgen_hooks(firstiter=_note_generator, finalizer=_finalize_generator)


_graveyard: list[SimulatedLoop] = []
"""Crashed processes. Keeping them keeps their coroutines from being closed, which would run code of a dead process."""
