"""Processes that are started again when they die or stand still, and that never outlive the one who started them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.cli.stack.liveness import Beats, until_dead
from services.common.observability import heartbeat
from services.common.observability.telemetry import logger

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 2.0
HEALTHY_AFTER_S = 10.0
"""A process that ran for so long starts again without delay when it dies."""
STOP_S = 8.0
"""What a process gets to end by itself after SIGTERM; the services' own grace is shorter."""


@dataclass(frozen=True, slots=True)
class Program:
    """A process to be kept running."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """The whole environment of the process."""
    log: Path
    """File to which its output is appended."""
    beats: bool = False
    """It writes heartbeats, see services/common/observability/heartbeat.py, and is killed when they cease."""


class Guardian:
    """Tells the guardian process which children live."""

    def __init__(self) -> None:
        self._alive: set[int] = set()
        self._pipe: int | None = None

    def started(self, pid: int) -> None:
        """A child runs."""
        self._alive.add(pid)
        self._tell(f"+{pid}\n")

    def ended(self, pid: int) -> None:
        """A child has ended and was waited for."""
        self._alive.discard(pid)
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        if self._pipe is None:
            return
        with suppress(BrokenPipeError):  # it died; the next one gets the whole list
            os.write(self._pipe, line.encode())

    async def keep(self) -> None:
        """Runs the guardian process and starts another if it dies."""
        while True:
            reading, writing = os.pipe()
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "services.cli.stack.child_guard", stdin=reading, start_new_session=True
                )
            finally:
                os.close(reading)
            self._pipe = writing
            for pid in self._alive:
                self._tell(f"+{pid}\n")
            try:
                await process.wait()
            finally:
                self._pipe = None
                os.close(writing)  # the end of its input is its end
                await process.wait()
            await asyncio.sleep(FIRST_DELAY_S)


@asynccontextmanager
async def child_guard() -> AsyncIterator[Guardian]:
    """A running guardian; at the end of the block it ends too, and kills whatever child is left."""
    guardian = Guardian()
    keeper = asyncio.create_task(guardian.keep())
    try:
        yield guardian
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


class Supervisor:
    """Keeps programs running until it is stopped."""

    def __init__(self, child_guard: Guardian, say: Callable[[str], None]) -> None:
        self._child_guard = child_guard
        self._say = say
        self._stopping = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self.pids: dict[str, int] = {}
        """Process id of each program that runs now."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `pids` has changed."""

    def start(self, program: Program) -> None:
        """Starts a program and keeps it running."""
        self._keepers.append(asyncio.create_task(self._keep(program), name=program.name))

    async def restart(self, name: str) -> None:
        """Asks a program to end, kills it if it hasn't after 8 s, and returns when it has; its keeper starts it again."""
        process = self._processes.get(name)
        if process is not None:
            await _end(process)

    def kill(self, name: str) -> None:
        """Kills a program that doesn't answer; its keeper starts it again."""
        process = self._processes.get(name)
        if process is not None:
            with suppress(ProcessLookupError):  # it ended by itself meanwhile
                process.kill()

    async def stop(self) -> None:
        """Asks all programs to end, kills what hasn't after 8 s, and returns when none is left."""
        self._stopping.set()
        for outcome in await asyncio.gather(*self._keepers, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _keep(self, program: Program) -> None:
        delay = FIRST_DELAY_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                outcome = await self._run_once(program)
            except (
                OSError
            ) as error:  # a full disk: its log or mesh.json can't be written; it must run again all the same
                outcome = f"{type(error).__name__} {error.errno}"
            if self._stopping.is_set():
                return
            if time.monotonic() - began >= HEALTHY_AFTER_S:
                delay = FIRST_DELAY_S
            self._say(f"{program.name} ended by {outcome}; starting it again")
            try:
                await asyncio.wait_for(self._stopping.wait(), timeout=delay)
            except TimeoutError:
                delay = min(2 * delay, LAST_DELAY_S)

    def _tell(self) -> None:
        """Tells of a change of pids; that it can't be written down ends no program."""
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
                    *program.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**program.environment, **({heartbeat.PIPE: str(beats.writing)} if beats else {})},
                    pass_fds=(beats.writing,) if beats else (),
                    start_new_session=True,  # Ctrl-C goes to `up` alone, which stops them in their order
                )
            finally:
                if beats:
                    os.close(beats.writing)
            return await self._until_ended(program, process, beats)

    async def _until_ended(self, program: Program, process: asyncio.subprocess.Process, beats: Beats | None) -> str:
        self._child_guard.started(process.pid)
        self._processes[program.name] = process
        self.pids[program.name] = process.pid
        self._tell()
        ended = asyncio.create_task(process.wait())
        stop = asyncio.create_task(self._stopping.wait())
        watch = asyncio.create_task(self._kill_when_silent(program.name, process.pid, beats)) if beats else None
        await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not ended.done():
            await _end(process)
        code = await ended
        if watch:
            watch.cancel()
        self._child_guard.ended(process.pid)
        del self.pids[program.name], self._processes[program.name]
        self._tell()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    async def _kill_when_silent(self, name: str, pid: int, beats: Beats) -> None:
        silent_s = await until_dead(pid, beats.silence)
        logger().error("process_silent", name=name, pid=pid, silent_s=round(silent_s, 1))
        self._say(f"{name} has given no sign of life for {silent_s:.0f} s; killing it")
        self.kill(name)


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):  # it ended by itself meanwhile
        process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()


@asynccontextmanager
async def supervisor(child_guard: Guardian, say: Callable[[str], None]) -> AsyncIterator[Supervisor]:
    """A supervisor whose programs are stopped at the end of the block."""
    one = Supervisor(child_guard, say)
    try:
        yield one
    finally:
        await one.stop()
