"""The W3C context in which a task works: taken from its caller, named in its log lines, carried on with what it sends.

No span is made here: the registry makes those of an incident afterwards, from what is stored. Traces are for seeing, not for
proof: losing them touches no decision.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Iterable

from services.common.observability.trace_ids import TRACEPARENT, parsed

_carried: contextvars.ContextVar[str] = contextvars.ContextVar("traceparent", default="")


def is_on() -> bool:
    """Whether contexts are taken and spans are made: not where OTEL_SDK_DISABLED says `true`."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"


def carry(header: str) -> None:
    """From now on this task works in the context that its caller gave; one that can't be read is none."""
    _carried.set(header if parsed(header) else "")


def carry_from(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """The same for the metadata of a call, where they name a context."""
    for key, value in metadata:
        if key == TRACEPARENT and isinstance(value, str):
            carry(value)


def carried() -> str:
    """The header of the context that this task works in; empty where its caller gave none."""
    return _carried.get()
