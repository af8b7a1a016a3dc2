"""Failures of what a person asked for: one printable line and an exit code, never a traceback."""

from __future__ import annotations

from typing import assert_never

import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common.messaging.cursors import WENT_BACK, StreamWentBack
from services.common.storage import stored_files

FAILED = 1
MISUSED = 2
AGED_OUT = 3
"""Exit code of `tandem report` and `tandem evidence` where what they need was stored, and isn't any more."""

LINE_BREAKS = "\n\t"


class CommandFailed(Exception):
    """Ends the command with `message` on standard error and `exit_code`: 1 for a failure, 2 for a misuse."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


_MISUSE = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
)


def trouble(error: OSError | UnicodeDecodeError) -> str:
    """Why a file can't be read or written, in words: without an error number, and without a codec's own text."""
    if isinstance(error, UnicodeDecodeError):
        if error.encoding == "utf-16":
            return "is text in UTF-16: save it as UTF-8 (in Excel: CSV UTF-8)"
        line = error.object[: error.start].count(b"\n") + 1
        return f"line {line} isn't text in UTF-8: save the file as UTF-8 (in Excel: CSV UTF-8)"
    return stored_files.reason_of(error)


def failure_of(error: CommandFailed | StreamWentBack | grpc.aio.AioRpcError | OSError) -> CommandFailed:
    """The failure that a person is shown for an error."""
    match error:
        case CommandFailed():
            return error
        case StreamWentBack():
            return CommandFailed(f"{error.reason} (the runbook: {WENT_BACK})")
        case grpc.aio.AioRpcError():
            return of_rpc(error)
        case OSError():
            return CommandFailed(of_os(error))
        case _:
            assert_never(error)


def of_os(error: OSError) -> str:
    """One line for an error of the system that no command expected, with the file if there is one."""
    return f"{error.filename}: {trouble(error)}" if error.filename else trouble(error)


def of_rpc(error: grpc.aio.AioRpcError) -> CommandFailed:
    """The command failure for a refused gRPC call, with field and reason if the service named them."""
    code = error.code()
    exit_code = MISUSED if code in _MISUSE else FAILED
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an error has the three methods that it reads
    if status is not None:
        for detail in status.details:
            bad_request = error_details_pb2.BadRequest()
            if detail.Unpack(bad_request) and bad_request.field_violations:
                violations = "; ".join(
                    f"{field_violation.field}: {field_violation.description}"
                    for field_violation in bad_request.field_violations
                )
                return CommandFailed(printable(f"refused: {violations}"), exit_code)
    return CommandFailed(printable(f"{code.name}: {error.details()}"), exit_code)


def printable(text: object, keep: str = "") -> str:
    """The text with each unprintable character as an escape such as `\\x1b`, except the characters in `keep`."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in shown)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
