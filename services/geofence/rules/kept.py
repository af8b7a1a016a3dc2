"""Keeps the rules in the log: writes them again each day, and after the log lost the rules in force."""

from __future__ import annotations

from contextlib import suppress

from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError
from services.geofence.domain.rules import Rules
from services.geofence.domain.state import State
from services.geofence.rules import translate

DAY_MS = 86_400_000


class KeptRules:
    """Keeps the rules in one partition's log."""

    def __init__(self, bus: Bus, partition: int) -> None:
        self._bus, self._partition = bus, partition
        self._lost: tuple[int, Rules] | None = None
        """Rules of a dropped state, and since when they were in force, ms of mesh time."""

    def note_dropped(self, state: State) -> None:
        """Notes the rules of a state that was dropped because the log went back. The log may have lost these acknowledged rules."""
        if state.rules_since_ms and (self._lost is None or state.rules_since_ms > self._lost[0]):
            self._lost = state.rules_since_ms, state.rules

    async def keep(self, state: State) -> None:
        """Writes rules that the log lacks or will soon lack. `state` has caught up with the log. Does nothing without a server."""
        with suppress(RetryableError):
            if self._lost:
                since_ms, rules = self._lost
                # Rules that were set after the lost part of the log are newer and stay in force.
                if since_ms > (state.rules_since_ms or 0) and rules != state.rules:
                    await self._enter(rules, f"rules-{self._partition}-lost-{since_ms}")
                    logger().warning("rules_entered_again", partition=self._partition)
                self._lost = None
            # The log keeps its entries for days only, and the fold always needs the rules.
            if state.rules_since_ms and state.now_ms - state.rules_since_ms >= DAY_MS:
                await self._enter(state.rules, f"rules-{self._partition}-{state.rules_since_ms}")

    async def _enter(self, rules: Rules, msg_id: str) -> None:
        """Writes rules to the log. Both evaluators write them with the same message id, so that the log stores one entry."""
        entry = translate.rules_entry(rules).SerializeToString()
        await self._bus.publish(flow.log_subject(self._partition, "rules"), entry, msg_id=msg_id)
