"""How a command fails: one clear line and an exit code, never a traceback."""

from __future__ import annotations

import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.cli.terminal import printable

FAILED = 1
MISUSED = 2


class CommandFailed(Exception):
    """Ends the command: `message` on standard error, `exit_code` 1 (it didn't work) or 2 (it was asked wrongly)."""

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


def of_rpc(error: grpc.aio.AioRpcError) -> CommandFailed:
    """The failure that a refused call amounts to, with the field and the reason where the service named them."""
    code = error.code()
    exit_code = MISUSED if code in _MISUSE else FAILED
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads the same three methods as of a call
    if status is not None:
        for detail in status.details:
            bad_request = error_details_pb2.BadRequest()
            if detail.Unpack(bad_request) and bad_request.field_violations:
                said = "; ".join(
                    f"{field_violation.field}: {field_violation.description}"
                    for field_violation in bad_request.field_violations
                )
                return CommandFailed(printable(f"refused: {said}"), exit_code)
    return CommandFailed(printable(f"{code.name}: {error.details()}"), exit_code)
