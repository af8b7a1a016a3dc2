"""Who is calling: SPIFFE ids, the roles they stand for, and the development token. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from services.common.rpc.errors import Unauthenticated
from tandem.common.v1 import access_pb2

Role = access_pb2.Role

_NAME = r"[a-z0-9-]+"
_PERSON = rf"(?:{_NAME}|console/{_NAME})"
"""A name, or somebody of whom a console says that they ask."""
CONSOLES = {
    "police": "spiffe://npa/desk/console",
    "probation": "spiffe://moj/desk/console",
    "reviewer": "spiffe://tandem/reviewer/console",
    "operator": "spiffe://tandem/operator/console",
}
"""The consoles of each of their roles, by certificate."""
_ROLES: tuple[tuple[str, access_pb2.Role.ValueType], ...] = (
    (r"spiffe://moj/records", Role.ROLE_MOJ_RECORDS),
    (r"spiffe://npa/records", Role.ROLE_NPA_RECORDS),
    (rf"spiffe://moj/desk/{_PERSON}", Role.ROLE_MOJ_DESK),
    (rf"spiffe://npa/desk/{_PERSON}", Role.ROLE_NPA_DESK),
    (r"spiffe://vendor/[a-z0-9-]+", Role.ROLE_VENDOR),
    (r"spiffe://tandem/warning-gateway", Role.ROLE_WARNING_GATEWAY),
    (rf"spiffe://tandem/reviewer/{_PERSON}", Role.ROLE_REVIEWER),
    (rf"spiffe://tandem/operator/{_PERSON}", Role.ROLE_OPERATOR),
    (r"spiffe://tandem/watch/[a-z0-9-]+", Role.ROLE_WATCH),
    # A leg asks other services for its agency's desk, and is shown no more than that.
    (r"spiffe://tandem/service/dispatch-probation", Role.ROLE_MOJ_DESK),
    (r"spiffe://tandem/service/dispatch-police", Role.ROLE_NPA_DESK),
    (r"spiffe://tandem/service/[a-z0-9-]+", Role.ROLE_SERVICE),
)


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    spiffe_id: str
    """The id that it proved, such as spiffe://moj/desk/seoul."""
    role: access_pb2.Role.ValueType
    """The one role of that id."""


def caller_of(spiffe_id: str) -> Caller:
    """The caller with this id. Raises Unauthenticated where no role belongs to it."""
    for pattern, role in _ROLES:
        if re.fullmatch(pattern, spiffe_id):
            return Caller(spiffe_id, role)
    raise Unauthenticated("this SPIFFE id has no role here")


def asking_for(console: Caller, name: str | bytes) -> Caller:
    """The person for whom a console calls: its role, and both names. Raises Unauthenticated where it is none, or that no name."""
    if console.spiffe_id not in CONSOLES.values():
        raise Unauthenticated("only a console may say for whom it asks")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9-]{1,32}", name):
        raise Unauthenticated("a person's name is 1 to 32 characters of a-z 0-9 -")
    return Caller(f"{console.spiffe_id}/{name}", console.role)


def sign_dev_token(spiffe_id: str, secret: str) -> str:
    """A development token: the id and a keyed hash over it. Good on loopback only, until the secret changes."""
    return base64.urlsafe_b64encode(spiffe_id.encode() + b"\n" + _mac(spiffe_id, secret)).decode()


def verify_dev_token(token: str, secret: str) -> str:
    """The SPIFFE id of a development token. Raises Unauthenticated where it wasn't signed with `secret`."""
    try:
        spiffe_id, _, mac = base64.urlsafe_b64decode(token.encode()).partition(b"\n")
        text = spiffe_id.decode()
    except ValueError:
        raise Unauthenticated("the token is malformed") from None
    if not secret or not hmac.compare_digest(mac, _mac(text, secret)):
        raise Unauthenticated("the token isn't signed with this mesh's secret")
    return text


def _mac(spiffe_id: str, secret: str) -> bytes:
    return hmac.new(secret.encode(), spiffe_id.encode(), hashlib.sha256).digest()
