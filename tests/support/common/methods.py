"""The list of all rpc methods in the protos, and what a call of any of them is answered."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor

import tandem


def methods() -> list[MethodDescriptor]:
    """All rpc methods, in the order of their proto files."""
    found = []
    for module in pkgutil.walk_packages(tandem.__path__, "tandem."):
        if module.name.endswith("_pb2"):
            services = importlib.import_module(module.name).DESCRIPTOR.services_by_name.values()
            found += [method for service in services for method in service.methods]
    return found


async def code_of(method: Any, client_streams: bool, metadata: Any) -> grpc.StatusCode:
    """Status of an empty call of a method."""
    # A stream of requests stays open, since its end may cross the refusal on the way.
    made = method(metadata=metadata, timeout=5.0) if client_streams else method(b"", metadata=metadata, timeout=5.0)
    try:
        if hasattr(made, "read"):
            await made.read()
            made.cancel()
        else:
            await made
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK
