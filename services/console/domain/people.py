"""Users of the console: their roles, the groups of roles that pages are for, and how claims of a provider become a user. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.common.rpc.identity import CONSOLES


class Role(StrEnum):
    """Role of a user; each matches one role of the mesh."""

    POLICE = "police"
    """Desk of the police leg: the 112 situation room."""
    PROBATION = "probation"
    """Desk of the probation leg: the location tracking centre."""
    REVIEWER = "reviewer"
    """Person who reviews incidents afterwards."""
    OPERATOR = "operator"
    """Person who runs the mesh."""
    POLICE_RECORDS = "police-records"
    """Clerk who enters the police's records: orders, protected persons and their devices."""
    PROBATION_RECORDS = "probation-records"
    """Clerk who enters the Ministry's records: wearers and tags."""

    @property
    def leg(self) -> str:
        """Leg whose incidents the role sees. A reviewer sees the police leg, because that leg knows all incidents of probation, too."""
        return "probation" if self is Role.PROBATION else "police"


DESKS = frozenset({Role.POLICE, Role.PROBATION})
"""Roles that have a leg and answer its offers."""
VIEWERS = frozenset({Role.POLICE, Role.PROBATION, Role.REVIEWER})
"""Roles that see incidents."""
RECORD_CLERKS = frozenset({Role.POLICE_RECORDS, Role.PROBATION_RECORDS})
"""Roles that enter an agency's records, and see nothing else."""
ALL_ROLES = frozenset(Role)
SELF = "console"
"""Name under which the console itself subscribes. No user can have it."""
UNITS = "spiffe://tandem/unit/"
"""Begin of the SPIFFE id of a unit, with which its leg and its own id follow."""
NAME = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, slots=True)
class ConsoleUser:
    """User who is signed in."""

    role: Role
    name: str
    """Name in the ledger and the chain: 1 to 32 characters of a-z 0-9 -."""

    @property
    def spiffe_id(self) -> str:
        """SPIFFE id under which the console calls services for this user. The services derive the role from it.

        It is the same with development tokens as with certificates, so that a step says whether an officer at the console made it.
        """
        console = CONSOLES[self.role]
        return console if self.name == SELF else f"{console}/{self.name}"


def is_agency_system(spiffe_id: str) -> bool:
    """Whether a step was reported by an agency's own system, and neither by a unit nor by an officer at the console."""
    of_console = any(spiffe_id.startswith(f"{console}/") for console in CONSOLES.values())
    return bool(spiffe_id) and not of_console and not spiffe_id.startswith(UNITS)


MAX_READABLE = 19
DIGEST_DIGITS = 12


class NotAllowed(Exception):
    """A person whom the provider knows has no role here. The text is the code of the reason."""


@dataclass(frozen=True, slots=True)
class ClaimsRule:
    """Rule by which claims become a user."""

    roles: Mapping[str, Role]
    """Role by value of the claim `roles_claim`."""
    roles_claim: str
    """Name of the claim with the roles: a text or a list of texts."""
    name_claim: str
    """Name of the claim with the person's name."""
    only: Role | None
    """The only role that may sign in; None for all roles."""


def user_of(claims: Mapping[str, Any], rule: ClaimsRule) -> ConsoleUser:
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
