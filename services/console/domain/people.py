"""Users of the console, their roles, and the groups of roles that pages are for. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


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


_SPIFFE = {
    Role.POLICE: "spiffe://npa/desk/",
    Role.PROBATION: "spiffe://moj/desk/",
    Role.REVIEWER: "spiffe://tandem/reviewer/",
    Role.OPERATOR: "spiffe://tandem/operator/",
    Role.POLICE_RECORDS: "spiffe://npa/records/console/",
    Role.PROBATION_RECORDS: "spiffe://moj/records/console/",
}
DESKS = frozenset({Role.POLICE, Role.PROBATION})
"""Roles that have a leg and answer its offers."""
VIEWERS = frozenset({Role.POLICE, Role.PROBATION, Role.REVIEWER})
"""Roles that see incidents."""
RECORD_CLERKS = frozenset({Role.POLICE_RECORDS, Role.PROBATION_RECORDS})
"""Roles that enter an agency's records, and see nothing else."""
ALL_ROLES = frozenset(Role)
SELF = "console"
"""Name under which the console itself subscribes. No user can have it."""
NAME = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, slots=True)
class ConsoleUser:
    """User who is signed in."""

    role: Role
    name: str
    """Name in the ledger and the chain: 1 to 32 characters of a-z 0-9 -."""

    @property
    def spiffe_id(self) -> str:
        """SPIFFE id under which the console calls services for this user. The services derive the role from it."""
        return _SPIFFE[self.role] + self.name
