"""Reasons that services of the mesh give for refusing a call."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.field.guard import Refused


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The machine-readable reason of a refusal (google.rpc.ErrorInfo); empty if it has none."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has the parts of a call that this reads
    found = status is not None and any(detail.Unpack(info) for detail in status.details)
    return info.reason if found else ""


def refusal_of_code(
    error: grpc.aio.AioRpcError, codes: Mapping[str, str], *, unknown: str, other: str
) -> Refused | grpc.aio.AioRpcError:
    """The answer to a code or link that a service refuses, and the error itself if the service couldn't say.

    `codes` are the app's codes by the service's reason, `other` is the one of any other reason, and `unknown` the one of a code that
    nobody issued.
    """
    match error.code():
        case grpc.StatusCode.NOT_FOUND | grpc.StatusCode.INVALID_ARGUMENT:
            return Refused(404, unknown)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return Refused(409, codes.get(reason_of(error), other))
        case _:
            return error
