"""Traces as they are read: what is kept of an incident, and what of it is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.common.messaging import flow
from services.common.messaging.streams import LogMetadata
from services.common.rpc.errors import NotFound
from services.registry.handlers import Registry
from services.registry.traces.domain.facts import AlertFact, Fact, Premise, StepFact, Use
from services.registry.traces.domain.spans import Span, spans_of
from services.registry.traces.store import MAX_FACTS

STREAMS = (flow.ALERTS.name, flow.INCIDENTS.name)
"""What traces are read from."""


@dataclass(frozen=True, slots=True)
class Read:
    """How far everything was read at some moment."""

    streams: Mapping[str, int]
    """Sequence by stream."""
    ledger: int
    """Sequence of the ledger's last row."""


@dataclass(frozen=True, slots=True)
class IncidentFacts:
    """What is known of an incident."""

    incident_id: str
    facts: Sequence[Fact]
    uses: Sequence[Use]
    log_meta: dict[str, list[Premise]]

    def spans(self, until: Read | None = None) -> list[Span]:
        """Spans of what is known, or of what was read `until` then."""
        facts, uses = self.facts, self.uses
        if until is not None:
            facts = [fact for fact in facts if fact.stored <= until.streams[fact.stream]]
            uses = [use for use in uses if use.sequence <= until.ledger]
        return spans_of(
            self.incident_id,
            [fact for fact in facts if isinstance(fact, AlertFact)],
            [fact for fact in facts if isinstance(fact, StepFact)],
            uses,
            self.log_meta,
        )


class Traces:
    """The traces of incidents, over the registry's database."""

    def __init__(self, registry: Registry, log_meta: LogMetadata) -> None:
        self._registry, self._clock, self._log_id = registry, log_meta.clock, log_meta.log_id

    async def read(self, incident_id: str) -> tuple[list[Span], bool]:
        """All spans of an incident, and whether there are more. Raises NotFound."""
        found = await self.known(incident_id)
        spans = found.spans()
        if not spans:
            raise NotFound("no incident with this id is known, or its alerts are on their way")
        return spans, len(found.facts) > MAX_FACTS

    async def known(self, incident_id: str) -> IncidentFacts:
        """What is known of an incident; of one that isn't known, nothing."""
        async with self._registry.reading() as records:
            facts = await records.traces.facts(incident_id)
            case_ids = {fact.case_id for fact in facts if isinstance(fact, AlertFact) and fact.case_id}
            return IncidentFacts(
                incident_id,
                facts,
                await records.traces.uses(incident_id, self._clock),
                await records.traces.log_meta(case_ids, self._clock),
            )

    async def position(self) -> Read:
        """How far everything is read."""
        async with self._registry.reading() as records:
            streams = {name: await records.traces.position(name, self._log_id) for name in STREAMS}
            last = await records.ledger.last()
        return Read(streams, last.sequence if last else 0)
