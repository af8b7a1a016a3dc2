"""Reasons that services of the mesh give for refusing a call."""

from __future__ import annotations

import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The machine-readable reason of a refusal (google.rpc.ErrorInfo); empty if it has none."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has the parts of a call that this reads
    found = status is not None and any(detail.Unpack(info) for detail in status.details)
    return info.reason if found else ""
