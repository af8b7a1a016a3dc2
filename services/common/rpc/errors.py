"""The two families of errors: what can never succeed as it was asked, and what may succeed later.

rpc.py maps them once to gRPC statuses, bus.py once to acknowledge, retry or park. Anything outside the families is a defect:
it ends the call or the process, it is never swallowed.
"""

from __future__ import annotations


class TandemError(Exception):
    """Base of both families; `reason` is for a person and holds no personal data."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PermanentError(TandemError):
    """Asking again, unchanged, gives the same refusal."""


class RetryableError(TandemError):
    """Asking again may succeed; `retry_after_s` says when it is worth it."""

    def __init__(self, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class InvalidField(PermanentError):
    """A field of the request is missing or out of range; `field` is its path, such as `order.rings[0].radius_m`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"

    def under(self, prefix: str) -> InvalidField:
        """The same error with the path of the enclosing message in front."""
        return InvalidField(f"{prefix}.{self.field}" if self.field else prefix, self.reason)


class NotFound(PermanentError):
    """What the request names doesn't exist."""


class Conflict(PermanentError):
    """The same version of a record is stored with other content."""


class FailedPrecondition(PermanentError):
    """The request is well formed but the state of the system doesn't allow it; `code` tells programs why, where they need it."""

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


class Unauthenticated(PermanentError):
    """The caller didn't prove who it is."""


class PermissionDenied(PermanentError):
    """The caller is known and may not do this."""


class OutdatedFold(PermanentError):
    """The log demands a newer version of the fold than this process has: it must stop."""


class StoreFull(RetryableError):
    """The log has reached its limit; senders store and forward."""


class Unavailable(RetryableError):
    """A part of the mesh doesn't answer. For a publish the outcome is unknown: retry with the same id."""
