"""The two families of errors: permanent errors, after which a retry is useless, and retryable errors.

rpc/statuses.py maps them to gRPC statuses. Readers of streams map them to retry or dead letter. Any other exception is a defect: it
ends the call or the process and is never swallowed.
"""

from __future__ import annotations


class TandemError(Exception):
    """Base class of both families of errors. `reason` is for people and holds no personal data."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PermanentError(TandemError):
    """An error that would recur if the same request or message were sent again."""


class RetryableError(TandemError):
    """An error after which a retry may succeed. `retry_after_s` is the recommended delay, seconds."""

    def __init__(self, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class InvalidField(PermanentError):
    """A field of a request or message is missing or invalid. `field` is its path, such as `order.rings[0].radius_m`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"

    def under(self, prefix: str) -> InvalidField:
        """Copy of this error with the path of the enclosing message prepended to the field."""
        return InvalidField(f"{prefix}.{self.field}" if self.field else prefix, self.reason)


class NotFound(PermanentError):
    """The requested record doesn't exist."""


class Conflict(PermanentError):
    """The same version of a record is already stored with other content."""


class FailedPrecondition(PermanentError):
    """The request is well-formed, but the state of the system doesn't allow it. `code` is the reason in a form that
    programs can read. Empty if no program needs it."""

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


class CannotBind(FailedPrecondition):
    """A port of this process can't be bound. `port` is its number."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"{host}:{port} can't be bound: {why}")
        self.port = port


class Unauthenticated(PermanentError):
    """The caller hasn't proven its identity."""


class PermissionDenied(PermanentError):
    """The caller is authenticated but may not do this."""


class OutdatedFold(PermanentError):
    """The log requires a newer version of the fold than this process has, so the process must stop."""


class StoreFull(RetryableError):
    """The log has reached its size limit. Senders keep their messages and send them later."""


class TooMuchInProgress(RetryableError):
    """The caller has as many calls or as much data in progress as one caller may. Retry once some of it has ended."""


class Unavailable(RetryableError):
    """A part of the mesh doesn't answer. The outcome of a publish is then unknown: retry it with the same id."""


class BudgetSpent(RetryableError):
    """The caller, or all callers together, read more of the history than their budget allows. Retry later."""
