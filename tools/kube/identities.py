"""Whose certificate a Secret called `tls-NAME` holds, and what role services give whoever proves itself with it."""

from __future__ import annotations

from services.cli.stack import nats_server
from services.common.messaging import flow
from services.common.messaging.permissions import SERVICE
from services.common.rpc.identity import Role, caller_of
from services.console.domain.people import SELF, ConsoleUser
from services.console.domain.people import Role as ConsoleRole

PREFIX = "tls-"
_CONSOLES = {f"console-{one.value}": one for one in ConsoleRole}
_OTHERS = ("otel-collector", "jaeger")
"""Programs of others, who call none of our methods."""


def identity_of(name: str) -> str:
    """The SPIFFE id: a console's is that of a desk, a service's its own. Empty where nobody is called so."""
    if name in _CONSOLES:
        return ConsoleUser(_CONSOLES[name], SELF).spiffe_id
    if name == "nats":
        return nats_server.IDENTITY
    return SERVICE + name if name in {*flow.USERS, *_OTHERS} else ""


def serves(secret: str, console_role: str) -> bool:
    """Whether services let the holder of this Secret ask what a console of this role asks."""
    own = identity_of(secret.removeprefix(PREFIX))
    return bool(own) and role_of(own) == role_of(ConsoleUser(ConsoleRole(console_role), SELF).spiffe_id)


def role_of(spiffe_id: str) -> Role.ValueType:
    """The role that the services' door finds."""
    return caller_of(spiffe_id).role
