"""The legs of the response, each with its policy: what it answers, whom its desk may know about, and its defaults. Pure.

Code that differs by leg asks a property of the policy, which says why, and compares no leg with another.
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
        """What sets this leg apart from the others."""
        return _POLICIES[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class LegPolicy:
    """What sets a leg apart from the others."""

    desk_role: Role.ValueType
    """Role of the desk that the leg serves. It refuses the other agency's."""
    port: int
    """Default TCP port of gRPC."""
    metrics_port: int
    """Default TCP port of /metrics, /healthz and /readyz."""
    acknowledge_within_s: float
    """Default time to acknowledge an offer, seconds of mesh time: people need longer than a gateway."""
    offers: frozenset[Demand]
    """Demands for which an assignment is offered, so that somebody must accept it."""
    notifies: frozenset[Demand] = frozenset()
    """Demands of which the desk is only notified. A demand in neither set makes no assignment in this leg."""

    has_units: bool = False
    """The desk sends units, so the leg follows their targets, and gives units on the road links by which they accept an offer. The
    warning leg sends nobody, and uses its link port for the answers of protected persons."""
    is_staffed: bool = False
    """The desk has people, who can telephone another leg that shows no steps. Only then are other legs' steps awaited."""
    keeps_evidence: bool = False
    """The agency may need the evidence in court. The warning leg has nothing that the police's copy lacks."""
    goes_to_wearer: bool = False
    """Units go to the wearer; otherwise to the protected person or place."""
    commands_tags: bool = False
    """Tags are this agency's, so the leg makes them report often while a unit has to go to the wearer."""
    may_locate_person: bool = False
    """The leg may know the protected person's devices and distance. Probation's desk may not: it gets rings in place of distances, and
    no news that a ring was left, which would reveal another distance from her home."""
    warns_persons: bool = False
    """The leg speaks to protected persons, so it raises their flags, such as NO_RECEIPT, and has no flag from another leg."""
    answers_flags: bool = False
    """The leg responds to the flags that the warning leg raises. They say that her phone is off, or not in her hands."""
    advises_persons: bool = False
    """Units are sent to the protected person, so the leg's race gives the advice that the warning leg passes on to her."""
    reoffers_graver: bool = False
    """A graver demand re-offers an accepted assignment: a person who confirmed the warning of a wide ring must also be warned of a
    nearer one. A unit on its way isn't sent twice."""
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
            goes_to_wearer=True,
            commands_tags=True,
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
