"""Intervals that a simulation lengthens, because they cost most of its time while nothing happens.

Each is a poll besides a wake-up, a guard against a step of the clock, or a sign of life. No deadline and no retry is in the table, so
decisions and deadlines stay as they are. The heartbeat of readers stays below half of what ends a session.
"""

from __future__ import annotations

from types import ModuleType

from services.common import clock
from services.common.messaging import lost_publications, session
from services.common.observability import health
from services.common.rpc import server
from services.dispatch import contact
from services.dispatch.leg import consumer as leg_consumer
from services.dispatch.leg import deadlines
from services.dispatch.statistics import figures
from services.dispatch.warning import phones, sender, service
from services.geofence import checkpoints, consumer, positions
from services.ingest.commands import service as commands
from services.registry import reconciliation, relay
from services.registry.disclosure import service as disclosures
from services.registry.reviews import service as reviews
from services.registry.traces import consumer as traces

TICK_AFTER_S = 3.0
"""Idle time of the log after which an evaluator publishes a tick, seconds. The service's default is 1."""

LENGTHENED: tuple[tuple[ModuleType, str, float], ...] = (
    (clock, "LONGEST_SLEEP_S", 5.0),
    (lost_publications, "NOTICE_INTERVAL_S", 1.0),
    (lost_publications, "CHECK_INTERVAL_S", 30.0),
    (session, "EXPIRES_S", 20.0),
    (session, "HEARTBEAT_S", 2.5),
    (health, "BEAT_S", 60.0),
    (server, "HEALTH_INTERVAL_S", 10.0),
    (deadlines, "_LONGEST_SLEEP_S", 5.0),
    (sender, "MAX_SLEEP_S", 5.0),
    (service, "MAX_SLEEP_S", 5.0),
    (consumer, "TICK_CHECK_S", 1.0),
    (checkpoints, "CHECK_INTERVAL_S", 0.25),
    (checkpoints, "RECONNECT_CHECK_INTERVAL_S", 2.0),
    (figures, "COLLECT_INTERVAL_S", 60.0),
    (leg_consumer, "ADOPT_AFTER_S", 5.0),
    (phones, "POLL_S", 10.0),
    (contact, "CHECK_INTERVAL_S", 5.0),
    (traces, "COALESCE_S", 5.0),
    (positions, "LONGEST_SLEEP_S", 5.0),
    (commands, "CHECK_INTERVAL_S", 2.0),
    (disclosures, "POLL_S", 5.0),
    (reconciliation, "CHECK_INTERVAL_S", 60.0),
    (relay, "SOLE_POLL_S", 10.0),
    (relay, "CHECK_INTERVAL_S", 60.0),
    (relay, "RENEW_INTERVAL_S", 60.0),
    (reviews, "CHECK_INTERVAL_S", 60.0),
)
"""Module, name and value in seconds."""


def lengthen() -> None:
    """Lengthens the intervals, for the rest of this process."""
    for module, name, value in LENGTHENED:
        assert getattr(module, name) < value, f"{module.__name__}.{name} is longer already"
        setattr(module, name, value)
