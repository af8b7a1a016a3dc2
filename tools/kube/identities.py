"""The SPIFFE id of a Secret `tls-NAME`, and the role that services give to its holder."""

from __future__ import annotations

from services.common.messaging import flow
from services.common.messaging.permissions import SERVICE
from services.common.rpc.identity import CONSOLES, Role, caller_of
from services.console.domain.people import Role as ConsoleRole
from services.local import nats_server

PREFIX = "tls-"
_CONSOLES = {f"console-{role.value}": role for role in ConsoleRole}
FIELD = "field"
"""The service that faces phones. It is no user of the NATS server."""
_OTHERS = ("otel-collector", "jaeger")
"""Third-party programs, which call none of our methods."""


def identity_of(name: str) -> str:
    """The SPIFFE id of a console, which is a desk's, or of a service; empty for an unknown name."""
    if name in _CONSOLES:
        return CONSOLES[_CONSOLES[name].value]
    if name == "nats":
        return nats_server.SERVER_IDENTITY
    return SERVICE + name if name in {*flow.USERS, FIELD, *_OTHERS} else ""


def serves(secret: str, console_role: str) -> bool:
    """Whether services give the holder of this Secret the role that a console of `console_role` needs."""
    own = identity_of(secret.removeprefix(PREFIX))
    return bool(own) and role_of(own) == role_of(CONSOLES[ConsoleRole(console_role).value])


def role_of(spiffe_id: str) -> Role.ValueType:
    """The role that services give to a SPIFFE id."""
    return caller_of(spiffe_id).role
