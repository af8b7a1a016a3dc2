"""SQLite of simulated processes: real files and the real library, run in the process's own turns, with injected errors."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Any

import aiosqlite

from tests.simulation.kernel.loop import SimulatedLoop
from tests.simulation.kernel.process import Process, ProcessLoop, running

STATEMENT_S = (0.000_02, 0.000_4)
"""Least and greatest time of a statement, seconds. A commit syncs the disk within it."""
_ERRORS = ("disk I/O error", "database or disk is full", "database is locked")


def _fail(process: Process | None, statement: str) -> None:
    """Raises an injected error. A rollback never fails: the library then does it when the file is opened next."""
    if process is None or not process.disk_error_share or statement.lstrip()[:8].upper() == "ROLLBACK":
        return
    if process.world.random.random() < process.disk_error_share:
        raise sqlite3.OperationalError(process.world.random.choice(_ERRORS))


class _Cursor(sqlite3.Cursor):
    """A cursor whose statements can fail."""

    def execute(self, sql: str, parameters: Any = (), /) -> _Cursor:
        _fail(self.connection.process, sql)  # type: ignore[attr-defined]
        super().execute(sql, parameters)
        return self


class SimulatedConnection(sqlite3.Connection):
    """A database connection of a process: it is closed without a commit when the process crashes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.process = running()
        if self.process:
            self.process.connections.append(self)

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return self.cursor().execute(sql, parameters)  # type: ignore[no-any-return]

    def commit(self) -> None:
        if self.in_transaction:
            _fail(self.process, "COMMIT")
        super().commit()


class _Pump:
    """The queue of an aiosqlite connection: its statements run one after another, each after a short time."""

    def __init__(self, loop: ProcessLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[asyncio.Future[Any] | None, Callable[[], Any]]] = deque()

    def put_nowait(self, item: tuple[asyncio.Future[Any] | None, Callable[[], Any]]) -> None:
        """Plans a statement."""
        self._waiting.append(item)
        if len(self._waiting) == 1:
            if self._loop.process.is_migrating:
                self._run()
            else:
                self._plan()

    def _plan(self) -> None:
        self._loop.call_later(self._loop.world.between(*STATEMENT_S), self._run)

    def _run(self) -> None:
        future, function = self._waiting[0]
        try:
            result = function()
        except Exception as error:
            if future and not future.done():
                future.set_exception(error)
        else:
            if future and not future.done():
                future.set_result(result)
        self._waiting.popleft()
        if self._waiting:
            self._plan()


class _NoThread:
    """In the place of the thread of an aiosqlite connection."""

    daemon = True

    def start(self) -> None:
        """Does nothing: the loop runs the statements."""

    def is_alive(self) -> bool:
        """Whether statements are accepted."""
        return True


class InlineConnection(aiosqlite.Connection):
    """An aiosqlite connection without a thread."""

    def __init__(self, connector: Callable[[], sqlite3.Connection], iter_chunk_size: int = 64) -> None:
        super().__init__(connector, iter_chunk_size)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ProcessLoop)
        self._tx = _Pump(loop)  # type: ignore[assignment]
        self._thread = _NoThread()  # type: ignore[assignment]

    def __del__(self) -> None:
        """A crashed process leaves its connections open; its `Process` closes them."""


def connect(database: Any, **options: Any) -> InlineConnection:
    """In the place of aiosqlite.connect."""
    options.pop("iter_chunk_size", None)
    open_file: Callable[..., sqlite3.Connection] = sqlite3.connect  # its process closes it
    return InlineConnection(lambda: open_file(database, **options))


def executor_of(loop: SimulatedLoop) -> Callable[[Callable[[], None]], None]:
    """Runs blocking work after a time in which other turns happen."""

    def run(work: Callable[[], None]) -> None:
        loop.call_later(loop.world.between(*STATEMENT_S), work)

    return run
