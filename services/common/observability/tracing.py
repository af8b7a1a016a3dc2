"""Propagation of the W3C trace context: a task takes it from its caller, logs it, and passes it on with its messages.

No span is made here. The registry makes the spans of an incident afterwards, from stored records. Traces are for insight and not
for proof: losing them affects no decision.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Iterable

from services.common.observability.trace_ids import TRACEPARENT, parsed

_carried: contextvars.ContextVar[str] = contextvars.ContextVar("traceparent", default="")


def is_on() -> bool:
    """Whether tracing is on: trace contexts are accepted and spans are made, unless OTEL_SDK_DISABLED is `true`."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"


def carry(header: str) -> None:
    """Sets the trace context of the current task from a caller's header. A malformed header clears it."""
    _carried.set(header if parsed(header) else "")


def carry_from(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Sets the trace context of the current task from the metadata of a call, if they hold one."""
    for key, value in metadata:
        if key == TRACEPARENT and isinstance(value, str):
            carry(value)


def carried() -> str:
    """Trace context header of the current task. Empty if its caller gave none."""
    return _carried.get()
