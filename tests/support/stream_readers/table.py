"""All readers of the flow table, and the read permissions that no code uses to parse messages."""

from __future__ import annotations

from services.common.messaging import flow
from tests.support.stream_readers import of_commands, of_geofence, of_ingest, of_legs, of_registry
from tests.support.stream_readers.alerts import LOG_ROWS
from tests.support.stream_readers.reader import Reader, Row

READERS: tuple[Reader, ...] = (
    *of_geofence.READERS,
    *of_ingest.READERS,
    *of_registry.READERS,
    *of_legs.READERS,
    *of_commands.READERS,
)
_OWN = "the publisher compares its publications with the stream, by sequence and identity, and parses none of them"
UNPARSED: dict[Row, str] = {
    ("ledger.head.{sequence}", "operator"): "agencies keep the heads; people read them with their own client",
    ("ledger.head.{sequence}", "registry"): _OWN,
    (flow.ROUTES.subject, "registry"): _OWN,
    ("advice.{incident_id}", "dispatch-police"): _OWN,
    **{(subject, "registry"): _OWN for subject in LOG_ROWS},
}
"""Read permissions under which no code parses the messages, each with its reason."""


def rows_of_the_flow_table() -> set[Row]:
    """Subject and reader of every row of the flow table."""
    return {(row.subject, user) for row in (*flow.FLOWS, flow.ROUTES) for user in row.readers}
