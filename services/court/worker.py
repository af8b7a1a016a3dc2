"""Calls a function of court in a process of its own, which can be killed.

A refold of the log takes seconds of processor time, and memory that only the end of a process gives back.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import grpc.aio
import uvloop

from services.common.failure import CommandFailed, failure_of
from services.common.messaging.cursors import StreamWentBack
from services.common.observability import telemetry

Result = TypeVar("Result")


class WorkerEnded(Exception):
    """The process ended without an outcome: it was killed, or the function has a defect, whose traceback is on standard error."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class _Call(NamedTuple):
    function: Callable[..., Coroutine[Any, Any, Any]]
    arguments: dict[str, Any]


class _Returned(NamedTuple):
    result: Any


class _Failed(NamedTuple):
    message: str
    exit_code: int


async def call(function: Callable[..., Coroutine[Any, Any, Result]], *, within_s: float, **arguments: object) -> Result:
    """Awaits a function of a module in a new process, and returns its result. The process doesn't outlive the call.

    The process has the settings of none of Tandem's services: the function gets what it needs as arguments. Raises CommandFailed if
    the function does, TimeoutError after `within_s` seconds, and WorkerEnded.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from services.court import worker; worker.serve()"),
        env={name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(within_s):
            written, _ = await process.communicate(pickle.dumps(_Call(function, arguments)))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not written:
        raise WorkerEnded(process.returncode or 0)
    outcome: _Returned | _Failed = pickle.loads(written)  # noqa: S301 - our own process wrote it
    if isinstance(outcome, _Failed):
        raise CommandFailed(outcome.message, outcome.exit_code)
    result: Result = outcome.result
    return result


def serve() -> None:
    """Runs the process: reads a call from standard input, and writes its outcome to standard output."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # only the outcome goes to the caller, whatever else is printed
    telemetry.configure("court")
    wanted: _Call = pickle.load(sys.stdin.buffer)  # noqa: S301 - the parent process wrote it
    outcome: _Returned | _Failed
    try:
        outcome = _Returned(uvloop.run(wanted.function(**wanted.arguments)))
    except (CommandFailed, StreamWentBack, grpc.aio.AioRpcError, OSError) as error:
        failure = failure_of(error)
        outcome = _Failed(failure.message, failure.exit_code)
    with output:
        pickle.dump(outcome, output)
