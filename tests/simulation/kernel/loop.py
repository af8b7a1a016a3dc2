"""The event loop of one simulated process.

Callbacks of a loop run in the order in which they were planned, as asyncio promises. What differs by seed is how the turns of several
loops interleave, and how long a turn takes.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

from tests.simulation.kernel.running import become, running_loop
from tests.simulation.kernel.world import SECOND_NS, START_NS, Event, World

UPTIME_S = 1_000.0
"""Monotonic time at the world's start, seconds: a machine's monotonic clock doesn't begin with the mesh."""
_LoopInterface: Any = asyncio.AbstractEventLoop
_LEAST_NS, _VARIES_NS = 5_000, 55_000
"""Least duration of a turn, and how much longer it may be, nanoseconds."""
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
    """A future with a hash that doesn't depend on its address. The loop that makes it sets its number."""

    _number: int

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulatedHandle(asyncio.TimerHandle):
    """A planned callback, which knows its event if it is a timer, so that a cancelled timer is no event of the world.

    It does without asyncio's constructor, which takes a tenth of a turn.
    """

    __slots__ = ("event",)

    def __init__(
        self, when: float, callback: Callable[..., object], args: Any, *, loop: SimulatedLoop, context: Context | None
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled, self._when = False, when
        self._repr = self._source_traceback = None
        self.event: Event | None = None

    def cancel(self) -> None:
        """Cancels the callback and the event of its timer."""
        if not self._cancelled:
            self._cancelled = True
            self._callback = self._args = None  # type: ignore[assignment]  # as asyncio lets go of them
            if self.event is not None:
                World.cancel(self.event)

    def fire(self) -> None:
        """Lets the loop run the callback in its next turn."""
        self.event = None  # it leads back here, and nothing collects cycles in a world
        self._loop._fire(self)


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
        self._ready: deque[SimulatedHandle] = deque()
        self._has_turn = False
        self._left_behind: list[Any] = []

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def enter(self, work: Callable[..., object], *arguments: Any) -> None:
        """Runs work as a part of this process."""
        if self.is_dead:
            return
        become(self)
        try:
            work(*arguments)
        finally:
            become(None)

    def _plan_turn(self) -> None:
        if not self._has_turn and not self.is_dead:
            self._has_turn = True
            world = self.world
            world.at_ns(world.now_ns + _LEAST_NS + int(world.random.random() * _VARIES_NS), self._turn)

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
        ready, world = self._ready, self.world
        for _ in range(len(ready)):
            if self.crash_after is not None:
                self.crash_after -= 1
                if self.crash_after <= 0:
                    self.crash_after = None
                    self.on_crash()
            if self.is_dead:
                return
            handle = ready.popleft()
            if not handle._cancelled:
                if world.on_turn:
                    world.on_turn(f"{world.now_ns} {self.name} {_described(handle)}")
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
        handle = SimulatedHandle(0.0, callback, args, loop=self, context=context)
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
        timer = SimulatedHandle(when, callback, args, loop=self, context=context)
        # Rounded up: a timer that fires early would find that its time hasn't come.
        due_ns = START_NS + int((when - UPTIME_S) * SECOND_NS) + 1
        timer.event = self.world.at_ns(due_ns, timer.fire)
        return timer

    def _fire(self, timer: SimulatedHandle) -> None:
        if not self.is_dead:
            self._ready.append(timer)
            if not self._has_turn:
                self._plan_turn()

    def create_future(self) -> asyncio.Future[Any]:
        future = SimulatedFuture(loop=self)
        future._number = next(_numbers)
        return future

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
        return running_loop() is self

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
    loop = running_loop()
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
