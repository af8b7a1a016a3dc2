"""Who uses the console, and what their role may look at. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """Who somebody is; each stands for one role of the mesh."""

    POLICE = "police"
    """The 112 room: the police leg's desk."""
    PROBATION = "probation"
    """The location tracking centre: the probation leg's desk."""
    REVIEWER = "reviewer"
    """Somebody who looks into an incident afterwards."""
    OPERATOR = "operator"
    """The people who run the mesh."""


_SPIFFE = {
    Role.POLICE: "spiffe://npa/desk/",
    Role.PROBATION: "spiffe://moj/desk/",
    Role.REVIEWER: "spiffe://tandem/reviewer/",
    Role.OPERATOR: "spiffe://tandem/operator/",
}
DESKS = frozenset({Role.POLICE, Role.PROBATION})
"""Roles that have a leg and answer its offers."""
LOOKERS = frozenset({Role.POLICE, Role.PROBATION, Role.REVIEWER})
"""Roles that see incidents."""
EVERYBODY = frozenset(Role)
SELF = "console"
"""Name under which the console itself watches, where no user has asked; no user's."""
NAME = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, slots=True)
class ConsoleUser:
    """Somebody who is signed in."""

    role: Role
    name: str
    """1 to 32 characters of a-z 0-9 -, as the ledger and the chain name them."""

    @property
    def spiffe_id(self) -> str:
        """As whom the console calls services for this user; what role that is, the services say."""
        return _SPIFFE[self.role] + self.name

    @property
    def leg(self) -> str:
        """The leg whose incidents they see: their own, or for a reviewer the police's, which hears of all that probation's does."""
        return "probation" if self.role is Role.PROBATION else "police"
