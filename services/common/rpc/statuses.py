"""The mapping of errors to gRPC statuses, with details that programs can read."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.common import errors

ERROR_DOMAIN = "tandem"
"""Domain of the error codes in a status's ErrorInfo."""

_STATUS: tuple[tuple[type[errors.TandemError], int], ...] = (
    (errors.InvalidField, code_pb2.INVALID_ARGUMENT),
    (errors.NotFound, code_pb2.NOT_FOUND),
    (errors.Conflict, code_pb2.ABORTED),
    (errors.FailedPrecondition, code_pb2.FAILED_PRECONDITION),
    (errors.Unauthenticated, code_pb2.UNAUTHENTICATED),
    (errors.PermissionDenied, code_pb2.PERMISSION_DENIED),
    (errors.StoreFull, code_pb2.RESOURCE_EXHAUSTED),
    (errors.BudgetSpent, code_pb2.RESOURCE_EXHAUSTED),
    (errors.TooMuchInProgress, code_pb2.RESOURCE_EXHAUSTED),
    (errors.Unavailable, code_pb2.UNAVAILABLE),
)


def status_of(error: errors.TandemError) -> status_pb2.Status:
    """gRPC status of an error, with BadRequest, ErrorInfo or RetryInfo as its detail."""
    code = next((code for kind, code in _STATUS if isinstance(error, kind)), code_pb2.INTERNAL)
    status = status_pb2.Status(code=code, message=str(error))
    detail: Any = None
    if isinstance(error, errors.InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.reason)
        detail = error_details_pb2.BadRequest(field_violations=[violation])
    elif isinstance(error, errors.FailedPrecondition) and error.code:
        detail = error_details_pb2.ErrorInfo(reason=error.code, domain=ERROR_DOMAIN)
    elif isinstance(error, errors.RetryableError):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        detail = error_details_pb2.RetryInfo(retry_delay=delay)
    if detail is not None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.TandemError) -> NoReturn:
    """Ends a call with the gRPC status of an error."""
    status = rpc_status.to_status(status_of(error))
    context.set_trailing_metadata(status.trailing_metadata)
    await context.abort(status.code, status.details)
    raise AssertionError("abort returned")
