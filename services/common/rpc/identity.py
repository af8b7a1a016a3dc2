"""Identity of callers: SPIFFE ids, their roles, and development tokens. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from functools import lru_cache

from services.common.errors import Unauthenticated
from tandem.common.v1 import access_pb2

Role = access_pb2.Role

_NAME = r"[a-z0-9-]+"
_PERSON = rf"(?:{_NAME}|console/{_NAME})"
"""Pattern of a person's name in a SPIFFE id: a name, or a name that a console has vouched for."""
CONSOLES = {
    "police": "spiffe://npa/desk/console",
    "probation": "spiffe://moj/desk/console",
    "reviewer": "spiffe://tandem/reviewer/console",
    "operator": "spiffe://tandem/operator/console",
    "police-records": "spiffe://npa/records/console",
    "probation-records": "spiffe://moj/records/console",
}
"""SPIFFE ids of the consoles' certificates, by the console's role."""
FIELD = "spiffe://tandem/service/field"
"""SPIFFE id of the service that faces phones on the internet."""
_ROLES: tuple[tuple[str, access_pb2.Role.ValueType], ...] = (
    (rf"spiffe://moj/records(?:/console(?:/{_NAME})?)?", Role.ROLE_MOJ_RECORDS),
    (rf"spiffe://npa/records(?:/console(?:/{_NAME})?)?", Role.ROLE_NPA_RECORDS),
    (rf"spiffe://moj/desk/{_PERSON}", Role.ROLE_MOJ_DESK),
    (rf"spiffe://npa/desk/{_PERSON}", Role.ROLE_NPA_DESK),
    (r"spiffe://vendor/[a-z0-9-]+", Role.ROLE_VENDOR),
    (r"spiffe://tandem/warning-gateway", Role.ROLE_WARNING_GATEWAY),
    (rf"spiffe://tandem/reviewer/{_PERSON}", Role.ROLE_REVIEWER),
    (rf"spiffe://tandem/operator/{_PERSON}", Role.ROLE_OPERATOR),
    (r"spiffe://tandem/watch/[a-z0-9-]+", Role.ROLE_WATCH),
    # A leg calls other services on behalf of its agency's desk, so it has the desk's role and no more.
    (r"spiffe://tandem/service/dispatch-probation", Role.ROLE_MOJ_DESK),
    (r"spiffe://tandem/service/dispatch-police", Role.ROLE_NPA_DESK),
    # Field faces the internet, so it has a role of its own, which few methods allow.
    (FIELD, Role.ROLE_FIELD),
    (r"spiffe://tandem/service/[a-z0-9-]+", Role.ROLE_SERVICE),
)


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller of an rpc."""

    spiffe_id: str
    """SPIFFE id that the caller has proven, such as spiffe://moj/desk/seoul."""
    role: access_pb2.Role.ValueType
    """The single role of this id."""


@lru_cache(maxsize=4_096)
def caller_of(spiffe_id: str) -> Caller:
    """Caller with a SPIFFE id. Raises Unauthenticated if the id has no role."""
    for pattern, role in _ROLES:
        if re.fullmatch(pattern, spiffe_id):
            return Caller(spiffe_id, role)
    raise Unauthenticated("this SPIFFE id has no role here")


def console_user(console: Caller, name: str | bytes) -> Caller:
    """Caller for a person who uses a console. It has the console's role, and its id holds both names.

    Raises Unauthenticated if the caller isn't a console, or if the person's name is malformed.
    """
    if console.spiffe_id not in CONSOLES.values():
        raise Unauthenticated("only a console may call on behalf of a person")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9-]{1,32}", name):
        raise Unauthenticated("a person's name must be 1 to 32 characters of a-z 0-9 -")
    return Caller(f"{console.spiffe_id}/{name}", console.role)


def sign_dev_token(spiffe_id: str, secret: str) -> str:
    """Creates a development token: the SPIFFE id and a keyed hash over it. It is valid on loopback only, until the secret changes."""
    return base64.urlsafe_b64encode(spiffe_id.encode() + b"\n" + _mac(spiffe_id, secret)).decode()


@lru_cache(maxsize=4_096)
def verify_dev_token(token: str, secret: str) -> str:
    """Verifies a development token and returns its SPIFFE id. Raises Unauthenticated if it isn't signed with `secret`."""
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
