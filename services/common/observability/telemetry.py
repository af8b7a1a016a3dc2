"""Structured logging: one JSON object per line on standard error, with an event name and fields.

An event is named by a code, not by a sentence. Log lines never hold names of persons or positions.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog

from services.common.observability import trace_ids, tracing


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


def _with_trace(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Adds the trace id of the log line's incident, or else that of the caller's trace context."""
    if event.get("incident_id"):
        event["trace_id"] = trace_ids.trace_id_of(event["incident_id"])
    elif context := trace_ids.parsed(tracing.carried()):
        event["trace_id"] = context[0]
    return event


def configure(service: str, output: TextIO = sys.stderr) -> None:
    """Sets up logging for this process. Every line names `service`.

    A crash by a signal, such as SIGSEGV in a library, writes the stack of each thread to standard error: files and lines, no values.
    """
    faulthandler.enable()
    logging.basicConfig(level=logging.WARNING, stream=output, format="%(message)s")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _with_trace,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=cast(TextIO, _NeverFails(output))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def logger() -> structlog.typing.FilteringBoundLogger:
    """The logger of this process."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return log
