"""Rules stay in the log: they are entered again each day, and where the log lost those that were in force."""

from __future__ import annotations

from contextlib import suppress

from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError
from services.geofence import translate
from services.geofence.domain.rules import Rules
from services.geofence.domain.state import State

DAY_MS = 86_400_000


class KeptRules:
    """The rules of one partition's log."""

    def __init__(self, bus: Bus, partition: int) -> None:
        self._bus, self._partition = bus, partition
        self._lost: tuple[int, Rules] | None = None
        """Rules of a state that was dropped, and since when they were in force, mesh time."""

    def dropped(self, state: State) -> None:
        """A state was dropped, since the log went back: its rules were acknowledged, and the log may have lost them."""
        if state.rules_since_ms and (self._lost is None or state.rules_since_ms > self._lost[0]):
            self._lost = state.rules_since_ms, state.rules

    async def keep(self, state: State) -> None:
        """Enters rules that the log lacks, or will lack soon; `state` has caught up with it. Without a server it does nothing."""
        with suppress(RetryableError):
            if self._lost:
                since_ms, rules = self._lost
                # Rules that were set behind the lost part are newer, and stay.
                if since_ms > state.rules_since_ms and rules != state.rules:
                    await self._enter(rules, f"rules-{self._partition}-lost-{since_ms}")
                    logger().warning("rules_entered_again", partition=self._partition)
                self._lost = None
            # The log keeps its entries for days only and must never lack what it needs to decide.
            if state.rules_since_ms and state.now_ms - state.rules_since_ms >= DAY_MS:
                await self._enter(state.rules, f"rules-{self._partition}-{state.rules_since_ms}")

    async def _enter(self, rules: Rules, msg_id: str) -> None:
        """Both evaluators do so; the id makes it one entry."""
        entry = translate.rules_entry(rules).SerializeToString()
        await self._bus.publish(flow.log_subject(self._partition, "rules"), entry, msg_id=msg_id)
