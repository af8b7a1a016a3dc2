"""Traces as they are read: what is kept of an incident, and what of it is new."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from services.common.clock import MeshClock
from services.common.errors import NotFound
from services.registry.handlers import Registry
from services.registry.traces.domain.facts import AlertFact, Fact, Premise, StepFact, Use
from services.registry.traces.domain.spans import Span, spans_of
from services.registry.traces.store import FACTS_MOST


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an incident."""

    incident_id: str
    facts: Sequence[Fact]
    uses: Sequence[Use]
    premises: dict[str, list[Premise]]

    def spans(self, without: Collection[str] = ()) -> list[Span]:
        """Spans of what is known, without what these ids name."""
        facts = [one for one in self.facts if one.fact_id not in without]
        return spans_of(
            self.incident_id,
            [one for one in facts if isinstance(one, AlertFact)],
            [one for one in facts if isinstance(one, StepFact)],
            [one for one in self.uses if one.disclosure_id not in without],
            self.premises,
        )


class Traces:
    """The traces of incidents, over the registry's database."""

    def __init__(self, registry: Registry, clock: MeshClock) -> None:
        self._registry, self._clock = registry, clock

    async def read(self, incident_id: str) -> tuple[list[Span], bool]:
        """All spans of an incident, and whether there are more. Raises NotFound."""
        found = await self.known(incident_id)
        spans = found.spans()
        if not spans:
            raise NotFound("no incident with this id is known, or its alerts are on their way")
        return spans, len(found.facts) > FACTS_MOST

    async def known(self, incident_id: str) -> Known:
        """What is known of an incident; of one that isn't known, nothing."""
        async with self._registry.reading() as records:
            facts = await records.traces.facts(incident_id)
            case_ids = {one.case_id for one in facts if isinstance(one, AlertFact) and one.case_id}
            return Known(
                incident_id,
                facts,
                await records.traces.uses(incident_id, self._clock),
                await records.traces.premises(case_ids, self._clock),
            )
