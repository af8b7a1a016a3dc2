"""The legs of the response, each with a policy: which demands it answers, what its desk may know, and default settings. Pure.

Code that differs by leg asks a property of the policy, and each property says why legs differ. Such code compares no leg by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from services.common.rpc.identity import Role
from services.dispatch.domain.enums import Demand

TAMPERED = 3
"""Number of TAMPERED in tandem.common.v1.AlertKind."""


class Leg(StrEnum):
    """A leg of the response. The value is its token in subjects, settings and stored events, as in flow.LEGS."""

    PROBATION = "probation"
    POLICE = "police"
    WARNING = "warning"

    @property
    def policy(self) -> LegPolicy:
        """The policy of this leg: the properties in which legs differ."""
        return _POLICIES[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class LegPolicy:
    """The values of one leg for all properties in which legs differ."""

    desk_role: Role.ValueType
    """Role of the desk that the leg serves. The leg refuses desks of the other agency."""
    port: int
    """Default TCP port of gRPC."""
    metrics_port: int
    """Default TCP port of /metrics, /healthz and /readyz."""
    acknowledge_within_s: float
    """Default time to acknowledge an offer, seconds of mesh time: people need longer than a gateway."""
    offers: frozenset[Demand]
    """Demands for which an assignment is offered, so that somebody must accept it."""
    notifies: frozenset[Demand] = frozenset()
    """Demands that only notify the desk. A demand in neither set makes no assignment in this leg."""

    has_units: bool = False
    """The desk sends units. So the leg follows their targets, and its link port serves the links by which units accept an offer. The
    warning leg sends nobody: its link port serves the answers of protected persons."""
    is_staffed: bool = False
    """The desk has people who can telephone another leg that shows no steps. Without such people the leg doesn't await those steps."""
    keeps_evidence: bool = False
    """The leg collects evidence for court. The warning leg doesn't, since it has nothing that the police's copy lacks."""
    commands_tags: bool = False
    """This agency owns the tags, so the leg makes a tag report often while a unit has to go to the wearer."""
    contacts_wearer: bool = False
    """The wearer is this agency's, so the leg follows the first contact with the wearer, and its officers call."""
    may_locate_person: bool = False
    """The leg may know the protected person's devices and distance. Probation's desk may not, so it gets rings in place of distances.
    It isn't notified when the wearer leaves a ring either, which would reveal another distance from her home."""
    warns_persons: bool = False
    """The leg warns protected persons, so it raises the flags about them, such as NO_RECEIPT, and reads no flag of another leg."""
    answers_flags: bool = False
    """The leg responds to flags of the warning leg, such as the flag that the protected person's phone is off."""
    advises_persons: bool = False
    """Units are sent to the protected person, so the leg's race gives the advice that the warning leg passes on to her."""
    reoffers_graver: bool = False
    """A graver demand re-offers an accepted assignment: a person who confirmed the warning of a wide ring must also be warned of a
    nearer ring. The other legs don't re-offer, since their unit is already on the way."""
    preferred_skills: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    """Preferred skill of a unit, by the number of the alert's kind."""


_POLICIES: Mapping[Leg, LegPolicy] = MappingProxyType(
    {
        Leg.PROBATION: LegPolicy(
            desk_role=Role.ROLE_MOJ_DESK,
            port=7404,
            metrics_port=7444,
            acknowledge_within_s=30.0,
            offers=frozenset({Demand.RESPOND}),
            notifies=frozenset({Demand.NOTIFY}),
            has_units=True,
            is_staffed=True,
            keeps_evidence=True,
            commands_tags=True,
            contacts_wearer=True,
            preferred_skills=MappingProxyType({TAMPERED: "tag-repair"}),
        ),
        Leg.POLICE: LegPolicy(
            desk_role=Role.ROLE_NPA_DESK,
            port=7405,
            metrics_port=7445,
            acknowledge_within_s=30.0,
            offers=frozenset({Demand.RESPOND}),
            notifies=frozenset({Demand.NOTIFY}),
            has_units=True,
            is_staffed=True,
            keeps_evidence=True,
            may_locate_person=True,
            answers_flags=True,
            advises_persons=True,
        ),
        Leg.WARNING: LegPolicy(
            desk_role=Role.ROLE_WARNING_GATEWAY,
            port=7406,
            metrics_port=7446,
            acknowledge_within_s=10.0,
            offers=frozenset({Demand.WARN, Demand.NOTIFY, Demand.RESPOND}),
            may_locate_person=True,
            warns_persons=True,
            reoffers_graver=True,
        ),
    }
)

EVIDENCE_LEGS = tuple(leg for leg in Leg if leg.policy.keeps_evidence)
"""Legs that collect evidence."""
