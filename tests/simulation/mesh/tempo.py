"""Polls that a simulation makes seldom. Each only looks for the work of other processes on one database, of which there are none."""

from __future__ import annotations

from services.common.messaging import session
from services.registry.reconciliation import service as reconciliation
from services.registry.relay import service as relay
from services.registry.reviews import service as reviews

HEARTBEAT_S = 1.5


def lengthen() -> None:
    """Lengthens the polls. Commits wake their readers at once, as without it."""
    relay.POLL_S = 10.0
    relay.RENEW_INTERVAL_S = 30.0
    reconciliation.CHECK_INTERVAL_S = 60.0
    reviews.CHECK_INTERVAL_S = 60.0
    session.HEARTBEAT_S = HEARTBEAT_S
