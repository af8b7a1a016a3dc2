"""Supervise child processes: restart them when they die or hang, and never let them outlive the supervisor.

A process without heartbeats is dead if it is also idle, or silent for very long.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.common.observability import health
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff

RESTART = Backoff(0.1, 2.0)
HEALTHY_AFTER_S = 10.0
"""After this uptime, seconds, the restart delay of a process is back at its minimum."""
AUTOGROUP_TRIES, AUTOGROUP_RETRY_S = 20, 0.1
"""Linux accepts a change of an autogroup ten times a second, from all users together."""
STOP_S = 8.0
"""Time for a process to end after SIGTERM before it is killed, seconds; the services' own grace period is shorter."""


@dataclass(frozen=True, slots=True)
class Program:
    """A process to keep running."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """The whole environment of the process."""
    log: Path
    """File to which the process's output is appended."""
    niceness: int = 0
    """Added to the niceness of `tandem up`, 0 to 19. What saves lives goes first: only less urgent processes have one."""
    beats: bool = False
    """Whether the process writes heartbeats (services/common/observability/health.py) and is killed when they cease."""


class ChildGuard:
    """Runs the child guard process (child_guard.py) and reports the running children to it.

    The guard kills these children when this process is gone.
    """

    def __init__(self) -> None:
        self._alive: set[int] = set()
        self._pipe: int | None = None

    def started(self, pid: int) -> None:
        """Reports a started child."""
        self._alive.add(pid)
        self._report(f"+{pid}\n")

    def ended(self, pid: int) -> None:
        """Reports a child that has ended and was waited for."""
        self._alive.discard(pid)
        self._report(f"-{pid}\n")

    def _report(self, line: str) -> None:
        if self._pipe is None:
            return
        with suppress(BrokenPipeError):  # the guard process died; its successor gets the whole list
            os.write(self._pipe, line.encode())

    async def keep(self) -> None:
        """Runs the child guard process until cancelled, and starts another if it dies."""
        while True:
            reading, writing = os.pipe()
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "services.local.child_guard", stdin=reading, start_new_session=True
                )
            finally:
                os.close(reading)
            self._pipe = writing
            for pid in self._alive:
                self._report(f"+{pid}\n")
            try:
                await process.wait()
            finally:
                self._pipe = None
                os.close(writing)  # the guard process ends when its standard input is closed
                await process.wait()
            await asyncio.sleep(RESTART.first_s)


@asynccontextmanager
async def child_guard() -> AsyncIterator[ChildGuard]:
    """Runs a child guard during the block. At its end, the guard kills the remaining children and ends."""
    guard = ChildGuard()
    task = asyncio.create_task(guard.keep())
    try:
        yield guard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Supervisor:
    """Keeps programs running until it is stopped."""

    def __init__(self, child_guard: ChildGuard, say: Callable[[str], None]) -> None:
        self._child_guard = child_guard
        self._say = say
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self.pids: dict[str, int] = {}
        """Process ids of the running programs, by name."""
        self.on_change: Callable[[], None] = lambda: None
        """Callback after each change of `pids`, in which `tandem up` writes the file of process ids."""

    def start(self, program: Program) -> None:
        """Starts a program, and restarts it whenever it ends."""
        self._tasks.append(asyncio.create_task(self._keep(program), name=program.name))

    async def restart(self, name: str) -> None:
        """Restarts a program: sends SIGTERM, and SIGKILL after 8 s. Returns once the old process has ended."""
        process = self._processes.get(name)
        if process is not None:
            await _end(process)

    def kill(self, name: str) -> None:
        """Kills a hanging program with SIGKILL; it is then restarted."""
        process = self._processes.get(name)
        if process is not None:
            with suppress(ProcessLookupError):  # the process has ended already
                process.kill()

    async def stop(self) -> None:
        """Stops all programs: sends SIGTERM, and SIGKILL after 8 s. Returns once all have ended."""
        self._stopping.set()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _keep(self, program: Program) -> None:
        restarts = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                outcome = await self._run_once(program)
            except OSError as error:  # a full disk: the log can't be opened, yet the program must be restarted
                outcome = f"{type(error).__name__} {error.errno}"
            if self._stopping.is_set():
                return
            if time.monotonic() - began >= HEALTHY_AFTER_S:
                restarts = 0
            self._say(f"{program.name} ended by {outcome}; restarting it")
            try:
                await asyncio.wait_for(self._stopping.wait(), timeout=RESTART.delay_s(restarts))
            except TimeoutError:
                restarts += 1

    def _notify_change(self) -> None:
        """Calls `on_change`. An OSError of the callback is printed, because no program may end because of it."""
        try:
            self.on_change()
        except OSError as error:
            self._say(f"the list of processes can't be written: {error.strerror}")

    async def _run_once(self, program: Program) -> str:
        with ExitStack() as stack:
            log = stack.enter_context(program.log.open("ab"))
            beats = Beats() if program.beats else None
            if beats:
                stack.enter_context(beats.listening())
            try:
                process = await asyncio.create_subprocess_exec(
                    *_nice(program),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**program.environment, **({health.PIPE: str(beats.writing)} if beats else {})},
                    pass_fds=(beats.writing,) if beats else (),
                    start_new_session=True,  # Ctrl-C must reach only `tandem up`, which then stops the programs itself
                )
            finally:
                if beats:
                    os.close(beats.writing)
            return await self._until_ended(program, process, beats)

    async def _until_ended(self, program: Program, process: asyncio.subprocess.Process, beats: Beats | None) -> str:
        if program.niceness:
            await _nice_session(process.pid, program.niceness)
        self._child_guard.started(process.pid)
        self._processes[program.name] = process
        self.pids[program.name] = process.pid
        self._notify_change()
        ended = asyncio.create_task(process.wait())
        stop = asyncio.create_task(self._stopping.wait())
        watch = asyncio.create_task(self._kill_when_silent(program.name, process.pid, beats)) if beats else None
        await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if watch:
            # A Python process beats no longer once its interpreter ends. From here on STOP_S bounds how long that takes.
            watch.cancel()
        if not ended.done():
            await _end(process)
        code = await ended
        self._child_guard.ended(process.pid)
        del self.pids[program.name], self._processes[program.name]
        self._notify_change()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    async def _kill_when_silent(self, name: str, pid: int, beats: Beats) -> None:
        silent_s = await until_dead(pid, beats.silence)
        logger().error("process_silent", name=name, pid=pid, silent_s=round(silent_s, 1))
        self._say(f"{name} has sent no heartbeat for {silent_s:.0f} s; killing it")
        self.kill(name)


def _nice(program: Program) -> tuple[str, ...]:
    """The command of a program under its niceness. `nice` replaces itself, so that the process id is the program's."""
    return ("nice", "-n", str(program.niceness), *program.command) if program.niceness else program.command


async def _nice_session(pid: int, niceness: int) -> None:
    """Lowers the priority of a process's session, where Linux shares the processor between sessions (autogroup).

    Each program has a session of its own, and a process's niceness has no effect on processes of other sessions then.
    """
    for _ in range(AUTOGROUP_TRIES):
        if _niced_session(pid, niceness):
            return
        await asyncio.sleep(AUTOGROUP_RETRY_S)


def _niced_session(pid: int, niceness: int) -> bool:
    """Whether the session needs no further attempt."""
    try:
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
    except BlockingIOError:
        return False
    except OSError:
        return True  # no autogroup in this kernel or container, or the process has ended
    return True


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):  # the process has ended already
        process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()


@asynccontextmanager
async def supervisor(child_guard: ChildGuard, say: Callable[[str], None]) -> AsyncIterator[Supervisor]:
    """Runs a supervisor during the block, and stops its programs at the end."""
    running = Supervisor(child_guard, say)
    try:
        yield running
    finally:
        await running.stop()


CHECK_S = 0.5
SILENT_AFTER_S = 3.0
"""An idle process is dead after this much silence, seconds: it was stopped, or its threads are deadlocked."""
IDLE_FOR_S = 1.5
"""A silent process counts as idle after this long without activity, seconds: three checks, as a working process may wait briefly."""
STARVED_AFTER_S = 20.0
"""A process that isn't idle, or whose activity is unknown, is dead after this much silence, seconds. On a busy machine it may get
the processor or the disk late."""
STARTING_S = 30.0
"""An idle process may take this long to its first heartbeat, seconds. A busy one may take longer, as it may recover a large store."""


def is_dead(silent_s: float, idle_s: float, has_begun: bool) -> bool:
    """Whether a process that has been silent and idle this long is dead. Pure."""
    if not has_begun:
        return silent_s >= STARTING_S and idle_s >= IDLE_FOR_S
    return silent_s >= STARVED_AFTER_S or (silent_s >= SILENT_AFTER_S and idle_s >= IDLE_FOR_S)


class Activity:
    """Activity of a process, from Linux's /proc. On other systems a process always counts as active."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._ticks = -1
        self._active_s = time.monotonic()

    def idle_s(self) -> float:
        """Seconds for which every check found no runnable thread, no thread waiting for a disk and no used processor time."""
        ticks, busy = 0, False
        try:
            for task in self._tasks.iterdir():
                # The fields start after the name, which may contain anything: 1st state, 12th user time, 13th system time.
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                busy |= fields[0] in "RD"
                ticks += int(fields[11]) + int(fields[12])
        except (OSError, IndexError):
            busy = True  # not Linux, or a thread that has just ended
        if busy or ticks != self._ticks:
            self._ticks, self._active_s = ticks, time.monotonic()
        return time.monotonic() - self._active_s


class Silence:
    """Silence of a process: the time since its last heartbeat, without time in which the observing process itself didn't run."""

    def __init__(self) -> None:
        self._heard_s = self._checked_s = time.monotonic()
        self.has_begun = False
        """Whether the process has sent a heartbeat."""

    def heard(self) -> None:
        """Records a heartbeat."""
        self.has_begun = True
        self._heard_s = time.monotonic()

    def check(self) -> float:
        """Seconds since the last heartbeat. Call it every 0.5 s: after a much longer pause it counts from zero."""
        now_s = time.monotonic()
        if now_s - self._checked_s > SILENT_AFTER_S / 2:
            self._heard_s = now_s
        self._checked_s = now_s
        return now_s - self._heard_s


class Beats:
    """The pipe through which a supervisor receives a child's heartbeats."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        """File descriptor for the child to write to."""
        os.set_blocking(self._reading, False)
        self.silence = Silence()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receives heartbeats during the block, and closes the pipe at its end."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._reading, self._read)
        try:
            yield
        finally:
            loop.remove_reader(self._reading)
            os.close(self._reading)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            if os.read(self._reading, 4096):
                self.silence.heard()
            else:  # the child has ended, which `process.wait` reports
                asyncio.get_running_loop().remove_reader(self._reading)


async def until_dead(pid: int, silence: Silence) -> float:
    """Waits until a process is dead. Returns how long it has been silent, seconds."""
    activity = Activity(pid)
    while True:
        await asyncio.sleep(CHECK_S)
        silent_s = silence.check()
        if is_dead(silent_s, activity.idle_s(), silence.has_begun):
            return silent_s
