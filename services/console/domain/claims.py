"""Maps verified claims of an identity provider to a user. Denies by default. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.console.domain.people import NAME, SELF, ConsoleUser, Role

MAX_READABLE = 19
DIGEST_DIGITS = 12


class NotAllowed(Exception):
    """A person whom the provider knows has no role here. The text is the code of the reason."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Rule by which claims become a user."""

    roles: Mapping[str, Role]
    """Role by value of the claim `roles_claim`."""
    roles_claim: str
    """Name of the claim with the roles: a text or a list of texts."""
    name_claim: str
    """Name of the claim with the person's name."""
    only: Role | None
    """The only role that may sign in; None for all roles."""


def user_of(claims: Mapping[str, Any], rule: Rule) -> ConsoleUser:
    """Returns the user with these claims, which include `iss` and `sub`. Raises NotAllowed: no_role, other_role, several_roles."""
    held = claims.get(rule.roles_claim)
    values = held if isinstance(held, list) else [held]
    roles = {rule.roles[value] for value in values if isinstance(value, str) and value in rule.roles}
    if not roles:
        raise NotAllowed("no_role")
    if rule.only is not None:
        roles &= {rule.only}
        if not roles:
            raise NotAllowed("other_role")
    if len(roles) > 1:
        raise NotAllowed("several_roles")
    return ConsoleUser(roles.pop(), name_of(claims, rule.name_claim))


def name_of(claims: Mapping[str, Any], name_claim: str) -> str:
    """Returns a name that the chain and the ledger can hold.

    A name that fits is kept. Any other name is replaced by its usable part and a hash of `iss` and `sub`, so that two persons never
    share a name.
    """
    given = claims.get(name_claim)
    name = given if isinstance(given, str) else ""
    if NAME.fullmatch(name) and name != SELF:
        return name
    readable = re.sub(r"[^a-z0-9]+", "-", name.partition("@")[0].lower()).strip("-")[:MAX_READABLE]
    digest = hashlib.sha256(f"{claims['iss']}\n{claims['sub']}".encode()).hexdigest()[:DIGEST_DIGITS]
    return f"{readable or 'user'}-{digest}"
