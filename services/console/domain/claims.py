"""Who somebody is by the claims of an identity provider that were verified already. Default deny. Pure."""

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
    """The provider knows them, and here they may do nothing; the text is a reason's code."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How claims are read."""

    roles: Mapping[str, Role]
    """The role of each value of the claim `roles_claim`."""
    roles_claim: str
    """Name of a claim that is a text or a list of texts."""
    name_claim: str
    """Name of the claim that is their name."""
    only: Role | None
    """The one role that may enter here; None for each."""


def user_of(claims: Mapping[str, Any], rule: Rule) -> ConsoleUser:
    """The user with these claims, `iss` and `sub` among them. Raises NotAllowed: no_role, other_role, several_roles."""
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
    """The name as the chain and the ledger can hold it.

    One that fits stands as it is. Of any other, what fits of it and a hash of who the provider says it is: two persons never share one.
    """
    given = claims.get(name_claim)
    name = given if isinstance(given, str) else ""
    if NAME.fullmatch(name) and name != SELF:
        return name
    readable = re.sub(r"[^a-z0-9]+", "-", name.partition("@")[0].lower()).strip("-")[:MAX_READABLE]
    digest = hashlib.sha256(f"{claims['iss']}\n{claims['sub']}".encode()).hexdigest()[:DIGEST_DIGITS]
    return f"{readable or 'user'}-{digest}"
