"""Logs as one JSON object a line on standard error: an event name with fields, never a sentence, a name or a position."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog


def configure(service: str, output: TextIO = sys.stderr) -> None:
    """Sets up logging for this process; `service` goes with every line."""
    logging.basicConfig(level=logging.WARNING, stream=output, format="%(message)s")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=output),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def logger() -> structlog.typing.FilteringBoundLogger:
    """The logger of this process."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return log
