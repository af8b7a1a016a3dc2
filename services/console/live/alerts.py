"""Alerts of a live page, from the evaluators' stream."""

from __future__ import annotations

from services.console import translate
from services.console.domain.live_page import LivePage
from services.console.domain.people import Role
from services.console.mesh import MeshClient
from tandem.common.v1 import exercise_pb2
from tandem.geofence.v1 import geofence_pb2


async def follow_alerts(mesh: MeshClient, role: Role, page: LivePage) -> None:
    """Adds new alerts to the page until the stream ends. Canaries aren't shown. Raises AioRpcError."""
    alerts = mesh.geofence.WatchAlerts(geofence_pb2.WatchAlertsRequest(new_only=True), metadata=mesh.own_identity(role))
    try:
        async for message in alerts:
            if message.alert.exercise != exercise_pb2.CANARY:
                page.add_alert(translate.alert(message))
    finally:
        alerts.cancel()
