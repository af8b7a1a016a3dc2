"""Read the traces of incidents from the database, completely or up to an earlier moment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.common.messaging import flow
from services.common.messaging.streams import LogMetadata
from services.common.rpc.errors import NotFound
from services.registry.traces.domain.expected import AwaitedTime, expected_times
from services.registry.traces.domain.facts import AlertFact, CaseVersion, DataUse, Fact, StepFact
from services.registry.traces.domain.spans import TraceSpan, shown_to, spans_of
from services.registry.traces.domain.typical import LikeIncidents, compared, first_times, incident_kind
from services.registry.traces.store import MAX_COMPARED, MAX_FACTS, MAX_USES
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

    @property
    def alerts(self) -> list[AlertFact]:
        """Facts about the incident's alerts."""
        return [fact for fact in self.facts if isinstance(fact, AlertFact)]

    def expected_times(self) -> list[AwaitedTime]:
        """When each step of the response was expected and when it came."""
        return expected_times(self.incident_id, (fact for fact in self.facts if isinstance(fact, StepFact)))

    @property
    def is_cut(self) -> bool:
        """Whether facts beyond MAX_FACTS or uses beyond MAX_USES were omitted."""
        return len(self.facts) > MAX_FACTS or len(self.uses) > MAX_USES

    def spans(self, until: ReadProgress | None = None) -> list[TraceSpan]:
        """Spans of all facts, the root first, or only of the facts that were read `until` an earlier moment."""
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

    async def read(self, incident_id: str) -> IncidentFacts:
        """Facts of an incident with at least one alert. Raises NotFound."""
        incident = await self.facts_of(incident_id)
        if not incident.alerts:
            raise NotFound(
                "incident_id: no alert of this incident is known yet; check the id, or retry in a few seconds"
            )
        return incident

    async def compare(self, incident_id: str, viewer: str) -> LikeIncidents:
        """Median times of the newest like incidents, without this one, of the steps that a viewer may see. Raises NotFound."""
        wanted = incident_kind((await self.read(incident_id)).alerts)
        async with self._transactions.reading() as work:
            newest = await work.traces.newest_alerts()
            same = [id_ for id_, alerts in newest.items() if id_ != incident_id and incident_kind(alerts) == wanted]
            facts = await work.traces.facts_of_all(same[:MAX_COMPARED])
        others = [
            IncidentFacts(incident_id=id_, facts=known, uses=(), case_versions={}) for id_, known in facts.items()
        ]
        # A trace has hundreds of spans, so those of 50 incidents don't hold up the event loop.
        times = await asyncio.to_thread(lambda: [first_times(shown_to(viewer, other.spans())) for other in others])
        return compared(wanted, times)

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
