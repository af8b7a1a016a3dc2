"""Values of arguments and options that several commands take: checked alike, and refused in the same words."""

from __future__ import annotations

from services.cli.failure import MISUSED, CommandFailed
from services.common import fields, times
from services.common.rpc.errors import InvalidField


def required_id(name: str, value: str) -> None:
    """Raises CommandFailed with the name of the argument or option if its value isn't an id."""
    try:
        fields.required_id(name, value)
    except InvalidField as error:
        raise CommandFailed(str(error), MISUSED) from None


def moment_ms(option: str, value: str) -> int:
    """The time of an option, milliseconds since 1970 UTC. Raises CommandFailed if the value isn't an RFC 3339 time."""
    try:
        return times.from_rfc3339(value)
    except ValueError:
        raise CommandFailed(
            f'{option}: "{value}" is not an RFC 3339 time (example: 2026-07-06T09:00:00+09:00)', MISUSED
        ) from None
