"""All readers, and who has the right to read a subject and no code that does."""

from __future__ import annotations

from services.common.messaging import flow
from tests.support.stream_readers import of_commands, of_geofence, of_ingest, of_legs, of_registry
from tests.support.stream_readers.reader import Reader, Row

READERS: tuple[Reader, ...] = (
    *of_geofence.READERS,
    *of_ingest.READERS,
    *of_registry.READERS,
    *of_legs.READERS,
    *of_commands.READERS,
)
_OWN = "the publisher compares what it has published with what the stream holds, by sequence and identity, and parses none of it"
NOBODY: dict[Row, str] = {
    ("ledger.head.{sequence}", "operator"): "agencies keep the heads; a person reads them with a client of their own",
    ("ledger.head.{sequence}", "registry"): _OWN,
    (flow.ROUTES.subject, "registry"): _OWN,
    ("advice.{incident_id}", "dispatch-police"): _OWN,
}
"""Rights to read under which no content is used, each with the reason why it is there."""


def rows_of_the_flow_table() -> set[Row]:
    """Every row of the flow table with each of its readers."""
    return {(row.subject, user) for row in (*flow.FLOWS, flow.ROUTES) for user in row.readers}
