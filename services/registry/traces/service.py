"""Read the traces of incidents from the database, completely or up to an earlier moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.common.messaging import flow
from services.common.messaging.streams import LogMetadata
from services.common.rpc.errors import NotFound
from services.registry.traces.domain.facts import AlertFact, CaseVersion, DataUse, Fact, StepFact
from services.registry.traces.domain.spans import TraceSpan, spans_of
from services.registry.traces.store import MAX_FACTS, MAX_USES
from services.registry.transactions import Transactions

STREAMS = (flow.ALERTS.name, flow.INCIDENTS.name)
"""Streams that the traces are read from."""


@dataclass(frozen=True, slots=True)
class ReadProgress:
    """Progress at one moment: the last read message of each stream, and the last row of the ledger."""

    streams: Mapping[str, int]
    """Sequence of the last read message by stream; 0 if no message was read."""
    ledger: int
    """Sequence of the ledger's last row."""


@dataclass(frozen=True, slots=True)
class IncidentFacts:
    """Stored facts of an incident, with the uses of personal data and the versions of its cases."""

    incident_id: str
    facts: Sequence[Fact]
    uses: Sequence[DataUse]
    case_versions: dict[str, list[CaseVersion]]

    def spans(self, until: ReadProgress | None = None) -> list[TraceSpan]:
        """Spans of all facts, or only of the facts that were read `until` an earlier moment."""
        facts, uses = self.facts, self.uses
        if until is not None:
            facts = [fact for fact in facts if fact.stored <= until.streams[fact.stream]]
            uses = [use for use in uses if use.sequence <= until.ledger]
        return spans_of(
            self.incident_id,
            [fact for fact in facts if isinstance(fact, AlertFact)],
            [fact for fact in facts if isinstance(fact, StepFact)],
            uses=uses,
            case_versions=self.case_versions,
        )


class Traces:
    """Reads the traces of incidents from the registry's database."""

    def __init__(self, transactions: Transactions, log_meta: LogMetadata) -> None:
        self._transactions, self._clock, self._log_id = transactions, log_meta.clock, log_meta.log_id

    async def read(self, incident_id: str) -> tuple[list[TraceSpan], bool]:
        """Spans of an incident, and whether facts beyond MAX_FACTS or uses beyond MAX_USES were omitted. Raises NotFound."""
        incident = await self.facts_of(incident_id)
        spans = incident.spans()
        if not spans:
            raise NotFound(
                "incident_id: no alert of this incident is known yet; check the id, or retry in a few seconds"
            )
        return spans, len(incident.facts) > MAX_FACTS or len(incident.uses) > MAX_USES

    async def facts_of(self, incident_id: str) -> IncidentFacts:
        """Stored facts of an incident; empty if the incident is unknown."""
        async with self._transactions.reading() as work:
            facts = await work.traces.facts(incident_id)
            case_ids = {fact.case_id for fact in facts if isinstance(fact, AlertFact) and fact.case_id}
            return IncidentFacts(
                incident_id=incident_id,
                facts=facts,
                uses=await work.traces.uses(incident_id, self._clock),
                case_versions=await work.traces.versions_of(case_ids, self._clock),
            )

    async def progress(self) -> ReadProgress:
        """Current progress in the streams and the ledger."""
        async with self._transactions.reading() as work:
            streams = {name: await work.traces.last_sequence(name, self._log_id) for name in STREAMS}
            last = await work.ledger.last()
        return ReadProgress(streams, last.sequence if last else 0)
