"""Functions that tests call in place of court's, in the worker process."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from services.common.failure import CommandFailed


def note_process(pid: Path) -> None:
    """Writes the process's id to a file."""
    pid.write_text(str(os.getpid()))


def text_of(path: Path, missing: str | None = None) -> str:
    """The text of a file; `missing` if it is given and there is no such file."""
    return path.read_text() if missing is None or path.exists() else missing


async def environment_of(pid: Path) -> list[str]:
    """Names of the process's environment variables. Prints something, and writes the process's id to a file."""
    print("a library prints")
    note_process(pid)
    return sorted(os.environ)


async def fail(exit_code: int) -> None:
    """Raises CommandFailed with an exit code."""
    raise CommandFailed("legal_basis: is \x1b[31mwrong", exit_code)


async def fail_to_read(path: Path) -> str:
    """Reads a file that isn't there."""
    return text_of(path)


async def break_down() -> None:
    """Raises an error that nobody expects."""
    raise ZeroDivisionError


async def die() -> None:
    """Kills the process, as the kernel does for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


async def never_end(pid: Path) -> None:
    """Writes the process's id to a file, and waits."""
    note_process(pid)
    await asyncio.Event().wait()


async def wait_for(path: Path) -> str:
    """Waits until another process has written a file, and returns its text."""
    while not (text := text_of(path, missing="")):  # noqa: ASYNC110 - the file is another process's
        await asyncio.sleep(0.02)
    return text
