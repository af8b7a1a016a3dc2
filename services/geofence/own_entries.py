"""Entries that an evaluator itself writes to the log of its partition: its fold version, the rules, and ticks while the log is idle.

The log keeps its entries for days only, so version and rules are written again each day: an older fold that starts later must find the
version, and the fold always needs the rules. Rules in force are also written again after the log lost them.

Both evaluators of a partition write these entries. Equal entries have the same message id, so that the log stores only one of them.
"""

from __future__ import annotations

from contextlib import suppress

from services.common.errors import RetryableError
from services.common.messaging import flow
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.observability.telemetry import logger
from services.geofence import checkpoints, translate
from services.geofence.domain.entries import FOLD_VERSION, Rules, require_supported
from services.geofence.domain.state import State
from tandem.common.v1 import log_pb2

DAY_MS = 86_400_000

_THIS_VERSION = log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=FOLD_VERSION)).SerializeToString()
_TICK = log_pb2.LogEntry(tick=log_pb2.Tick()).SerializeToString()


class OwnEntries:
    """Writes one evaluator's own entries to the log of its partition."""

    def __init__(self, bus: Bus, partition: int) -> None:
        self._bus, self._partition = bus, partition

    async def require_this_version(self) -> None:
        """Writes this fold version to the log, so that older folds stop, unless the log has it already.

        Raises OutdatedFold if the log demands a newer version: nothing of it is folded then, and nothing written.
        """
        subject = flow.log_subject(self._partition, "fold")
        last = await checkpoints.await_server(lambda: self._bus.last_of(flow.log_stream(self._partition), subject))
        demanded = 0 if last is None else translate.fold_version_of(last)
        require_supported(demanded)
        if demanded < FOLD_VERSION:
            await self._bus.publish_until_stored(
                subject, _THIS_VERSION, msg_id=f"fold-{self._partition}-{FOLD_VERSION}"
            )

    async def keep_version(self, state: State) -> None:
        """Writes this fold version again a day after the log last demanded one. `state` has caught up with the log.

        Does nothing without a server.
        """
        since_ms = state.log_version_ms
        if since_ms is not None and state.now_ms - since_ms >= DAY_MS:
            with suppress(RetryableError):
                subject = flow.log_subject(self._partition, "fold")
                await self._bus.publish(
                    subject, _THIS_VERSION, msg_id=f"fold-{self._partition}-{FOLD_VERSION}-{since_ms}"
                )

    async def tick(self, sequence: int) -> None:
        """Writes an empty entry after the log's last one, at `sequence`. Does nothing without a server."""
        with suppress(
            RetryableError, AlreadyStored
        ):  # without the log there is nothing to decide; the next tick retries
            await self._bus.publish(
                flow.log_subject(self._partition, "tick"), _TICK, msg_id=f"tick-{self._partition}-{sequence}"
            )


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
