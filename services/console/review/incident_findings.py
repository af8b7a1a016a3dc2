"""Findings that the page of an incident shows."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import grpc.aio

from services.common.observability.telemetry import logger
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console.domain.people import Role
from services.console.guard import Ask, http_status
from services.console.mesh import MeshClient
from tandem.registry.v1 import finding_pb2

REVIEWERS = frozenset({Role.REVIEWER})
"""Roles that write and see findings."""


def new_finding_id() -> str:
    """Makes the id of a finding that a form enters, so that pressing its button twice enters it once."""
    return f"finding-{secrets.token_hex(8)}"


async def of_incident(mesh: MeshClient, ask: Ask, incident_id: str) -> Sequence[finding_pb2.ReviewFinding]:
    """Reads the findings about an incident; none while the registry is unavailable, and for a user who is no reviewer."""
    if ask.user.role not in REVIEWERS:
        return ()
    try:
        listed = await mesh.findings.ListFindings(
            finding_pb2.ListFindingsRequest(incident_id=incident_id),
            metadata=mesh.identity(ask.user),
            timeout=UNARY_DEADLINE_S,
        )
    except grpc.aio.AioRpcError as error:
        if http_status(error.code()) < 500:
            raise
        logger().info("no_findings", incident_id=incident_id, code=error.code().name)
        return ()
    return list(listed.findings)
