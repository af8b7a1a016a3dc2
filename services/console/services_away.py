"""Calls to services that may be away: a page shows the rest, and names the service."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

T = TypeVar("T")
_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # the budget of the history is spent
    grpc.StatusCode.UNIMPLEMENTED,  # the service is older than the console, during an upgrade
)


async def unless_away(service: str, call: Coroutine[Any, Any, T], away: list[str]) -> T | None:
    """Returns the result of a call; None, and the service's name in `away`, if the service doesn't answer."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() not in _AWAY:
            raise
        away.append(service)
        return None
