"""Structured logging: one JSON object per line on standard error, with an event name, fields and the trace context.

An event is named by a code, not by a sentence. Log lines never hold names of persons or positions. A task takes its W3C trace
context from its caller, logs it, and passes it on with its messages. No span is made here: the registry makes the spans of an incident
afterwards, from stored records. Traces are for insight and not for proof: losing them affects no decision.
"""

from __future__ import annotations

import contextvars
import faulthandler
import json
import logging
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO, cast

import structlog

from services.common.observability import spans
from services.common.observability.spans import TRACEPARENT, parsed


class _NeverFails:
    """A log output that ignores write errors, for example on a full disk, so that logging never ends the work."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def write(self, text: str) -> int:
        """Writes a text, or drops it if that fails."""
        with suppress(OSError):
            self._output.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the output and ignores an error."""
        with suppress(OSError):
            self._output.flush()


class _LogLine:
    """Last processor of structlog: one JSON object for each event. A processor of structlog for each field costs several times as much
    in a process that has been idle."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._encode = json.JSONEncoder(default=repr).encode

    def __call__(self, wrapped: structlog.typing.WrappedLogger, method: str, event: structlog.typing.EventDict) -> str:
        """The event with the service, its level, the trace id of its incident or else of the caller's trace context, and the time."""
        event["service"] = self._service
        event["level"] = "error" if method == "exception" else method
        if incident_id := event.get("incident_id"):
            event["trace_id"] = spans.trace_id_of(incident_id)
        elif context := spans.parsed(carried()):
            event["trace_id"] = context[0]
        event["timestamp"] = f"{datetime.now(UTC).replace(tzinfo=None).isoformat()}Z"
        if event.get("exc_info"):
            event = structlog.processors.dict_tracebacks(wrapped, method, event)
        return self._encode(event)


def configure(service: str, output: TextIO = sys.stderr) -> None:
    """Sets up logging for this process. Every line names `service`.

    A crash by a signal, such as SIGSEGV in a library, writes the stack of each thread to standard error: files and lines, no values.
    """
    faulthandler.enable()
    logging.basicConfig(level=logging.WARNING, stream=output, format="%(message)s")
    structlog.configure(
        processors=[_LogLine(service)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=cast(TextIO, _NeverFails(output))),
        cache_logger_on_first_use=True,
    )


_LOGGER: structlog.typing.FilteringBoundLogger = structlog.get_logger()
"""One logger for all calls: it is bound at its first line after `configure`. Binding one costs a quarter of a line."""


def logger() -> structlog.typing.FilteringBoundLogger:
    """The logger of this process."""
    return _LOGGER


# ── the trace context of a task ───────────────────────────────────────────────────────────────────────────────────────

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
