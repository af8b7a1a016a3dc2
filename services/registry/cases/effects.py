"""Plan what follows from changed records, in memory: reviews, match events, joint cases, routes, tokens and messages.

Nothing is read or written here. `surroundings.py` gathers all rows that a plan needs, and `CaseService.apply` applies the plan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, assert_never

from services.common.messaging import flow
from services.common.observability.telemetry import logger
from services.registry.cases import translate
from services.registry.cases.surroundings import Surroundings
from services.registry.domain.cases import (
    CaseUpdate,
    DecidedPair,
    JointCase,
    MatchPair,
    PlanTerms,
    StoredCase,
    StoredRoute,
    decide_pair,
    device_partitions,
    tag_partitions,
    withdrawn_case,
)
from services.registry.domain.device_tokens import DeviceToken, valid_tokens
from services.registry.domain.records import (
    Device,
    ExerciseKind,
    PersonUnit,
    PresenceUnit,
    RoutedDevice,
    Tag,
    WearerUnit,
)
from services.registry.domain.reviews import Event, MatchEvent, Review, ReviewComparison
from services.registry.records.store import owner_of
from services.registry.unit_of_work import OutboxMessage
from tandem.common.v1 import log_pb2


class CaseMessage(NamedTuple):
    """Snapshot of a joint case for the log. Sealing is random, so contacts are sealed only when the snapshot is written."""

    case: JointCase
    version: int


class LogLine(NamedTuple):
    """Line of the service's log, written after the commit."""

    level: int
    event: str
    fields: Mapping[str, object]

    def write(self) -> None:
        """Write the line."""
        logger().log(self.level, self.event, **self.fields)


class Effects:
    """Effects of a command, in the order in which they happen. Each effect sees the ones before it."""

    def __init__(self, terms: PlanTerms, found: Surroundings, pairs: Iterable[MatchPair] = ()) -> None:
        self.terms = terms
        self.found = found
        self.reviews: dict[str, Review] = {}
        self.events: list[MatchEvent] = []
        self.comparisons: list[ReviewComparison] = []
        self.cases: dict[str, CaseUpdate] = {}
        self.routes: dict[str, StoredRoute] = {}
        self.tokens: dict[str, list[DeviceToken]] = {}
        self.messages: list[OutboxMessage | CaseMessage] = []
        self.logs: list[LogLine] = []
        self._stored = {pair.case_id: pair.case for pair in pairs if pair.case}
        self._active = {
            pair.case_id: (pair.wearer.wearer_id, pair.order.protected_person_ids) for pair in pairs if pair.is_held
        }
        """Ids of the wearer and the protected persons of each joint case in the plan that isn't withdrawn, by case id."""

    def log(self, level: int, event: str, **fields: object) -> None:
        """Write a line to the log after the commit."""
        self.logs.append(LogLine(level, event, fields))

    # ── matches ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def refresh(self, pair: MatchPair) -> None:
        """Compare a pair again, then update its review and its joint case."""
        update = self.cases.get(pair.case_id)
        review, case = self.reviews.get(pair.case_id, pair.review), update.case if update else pair.case
        self.settle(decide_pair(replace(pair, review=review, case=case), self.terms))

    def settle(self, decided: DecidedPair) -> None:
        """Update the review and the joint case of a compared pair."""
        pair, after = decided.pair, decided.review
        if after is not None and after != pair.review:
            self.reviews[pair.case_id] = after
        if decided.opens_review:
            self.add_event(pair, Event.REVIEW_OPENED)
            bits = round(decided.evidence.weight_bits, 1)
            self.log(logging.INFO, "review_opened", case_id=pair.case_id, weight_bits=bits)
        if decided.closes_review:
            self.add_event(pair, Event.REVIEW_CLOSED)
            self.log(logging.INFO, "review_closed", case_id=pair.case_id)
        if decided.has_new_evidence:
            self._add_comparison(decided)
        self.set_case(pair, decided.holds)

    def _add_comparison(self, decided: DecidedPair) -> None:
        pair, evidence = decided.pair, decided.evidence
        self.comparisons.append(
            ReviewComparison(
                case_id=pair.case_id,
                at_ms=self.terms.now_ms,
                order_version=pair.order.source_version,
                wearer_version=pair.wearer.source_version,
                weight_bits=evidence.weight_bits,
                agreements=evidence.agreements,
            )
        )

    def add_event(self, pair: MatchPair, event: Event) -> None:
        """Add an event about a pair to the stream of matches."""
        now_ms = self.terms.now_ms
        self.events.append(
            MatchEvent(
                event=event,
                case_id=pair.case_id,
                order_id=pair.order.order_id,
                wearer_id=pair.wearer.wearer_id,
                matched_at_ms=pair.case.matched_at_ms if pair.case else now_ms,
                at_ms=now_ms,
            )
        )

    def add_event_for_cases(self, event: Event) -> None:
        """Add an event to the stream of matches for each joint case of the pairs that isn't withdrawn."""
        current = self._stored | {case_id: update.case for case_id, update in self.cases.items()}
        new = {case_id for case_id, update in self.cases.items() if update.is_new}
        ordered = sorted(current.values(), key=lambda case: (case.case_id in new, case.sequence))
        self.events += [
            MatchEvent(
                event=event,
                case_id=case.case_id,
                order_id=case.order_id,
                wearer_id=case.wearer_id,
                matched_at_ms=case.matched_at_ms,
                at_ms=self.terms.now_ms,
            )
            for case in ordered
            if case.withdrawn_at_ms is None
        ]

    def set_case(self, pair: MatchPair, holds: bool) -> None:
        """Create, renew or withdraw the joint case of a pair, and send its snapshot to the log."""
        order = pair.order
        before = pair.case
        now_ms = self.terms.now_ms
        if not holds and not pair.is_held:
            return
        # Versions follow the clock, so that a database that was lost and refilled uses greater versions than the log holds.
        version = max(before.version + 1 if before else 1, now_ms)
        case = self.found.case_of(order, pair.wearer)
        if not holds:
            case = withdrawn_case(case, now_ms)
        self._update_case(pair, case, version=version, holds=holds)
        # Routes go before the case, so that reports reach the case's partition by the time the fold knows the case.
        self.send_routes_of(order.protected_person_ids)
        self.messages.append(CaseMessage(case, version))
        # The agencies get no events about the synthetic records of a canary.
        if holds != pair.is_held and order.exercise is not ExerciseKind.CANARY:
            self.add_event(pair, Event.MATCHED if holds else Event.WITHDRAWN)
            level, event = (logging.INFO, "order_matched") if holds else (logging.WARNING, "match_withdrawn")
            self.log(level, event, case_id=case.case_id)

    def _update_case(self, pair: MatchPair, case: JointCase, *, version: int, holds: bool) -> None:
        before, now_ms = pair.case, self.terms.now_ms
        stored = StoredCase(
            sequence=before.sequence if before else len(self.cases),
            case_id=case.case_id,
            order_id=case.order_id,
            wearer_id=case.wearer_id,
            version=version,
            matched_at_ms=before.matched_at_ms if before else now_ms,
            withdrawn_at_ms=None if holds else now_ms,
        )
        is_new = case.case_id not in self._stored
        self.cases[case.case_id] = CaseUpdate(stored, is_new, case.valid_until_ms)
        if holds:
            self._active[case.case_id] = (case.wearer_id, pair.order.protected_person_ids)
        else:
            self._active.pop(case.case_id, None)

    # ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def send_routes_of(self, person_ids: Iterable[str]) -> None:
        """Send the changed routes of these persons' devices."""
        for device in self.found.devices_of(person_ids):
            self.send_route(device)

    def send_route(self, device: RoutedDevice, *, renew: bool = False) -> None:
        """Send the route of a device if it changed; with `renew` also if it didn't."""
        device_id, revoked = device.device_id, self.is_revoked(device)
        tokens = self._valid_tokens(device_id, revoked)
        message = translate.route_to_proto(device, self._partitions(device), revoked, tokens=tokens)
        self._send(device_id, message.SerializeToString(deterministic=True), renew=renew)

    def resend_route(self, device_id: str, *, revoked: bool = False) -> None:
        """Send the last route of a device whose record was destroyed; with `revoked` as the route of a device out of service."""
        last = self.routes.get(device_id) or self.found.routes.get(device_id)
        if last is None:
            return
        message = log_pb2.DeviceRoute.FromString(last.route)
        if revoked:
            message.revoked = True
            message.ClearField("identifier_sha256")
        self._send(device_id, message.SerializeToString(deterministic=True), renew=not revoked)

    def _send(self, device_id: str, route: bytes, *, renew: bool) -> None:
        last = self.routes.get(device_id) or self.found.routes.get(device_id)
        if last and route == last.route and not renew:
            return
        # The version follows the clock, like the version of a case: after a lost database, message ids must not repeat.
        version = max((last.version if last else 0) + 1, self.terms.now_ms)
        self.routes[device_id] = StoredRoute(version, route)
        subject = f"$KV.{flow.DEVICES_BUCKET}.{device_id}"
        self.messages.append(OutboxMessage(subject, f"route:{device_id}:{version}", route))

    def is_revoked(self, device: RoutedDevice) -> bool:
        """Whether a device may no longer report: it is out of service, or its wearer or person has ended."""
        if owner_of(device) in self.found.ended:
            return True
        if isinstance(device, PresenceUnit):
            return device.is_removed(self.terms.now_ms)
        return device.removed_at_ms is not None

    def _partitions(self, device: RoutedDevice) -> tuple[int, ...]:
        match device:
            case Tag() | WearerUnit():
                return tag_partitions(device.wearer_id, self.terms.partitions)
            case Device() | PersonUnit():
                person_id = device.person_id
                kept_away = {wearer_id for wearer_id, persons in self._active.values() if person_id in persons}
                kept_away |= self.found.kept_away.get(person_id, set())
                return device_partitions(person_id, kept_away, self.terms.partitions)
            case _:
                assert_never(device)

    def _valid_tokens(self, device_id: str, revoked: bool) -> list[DeviceToken]:
        """Valid tokens of a device. Deletes expired tokens, and all tokens of a revoked device."""
        tokens = self.tokens.get(device_id, self.found.tokens.get(device_id, []))
        valid = [] if revoked else valid_tokens(tokens, self.terms.now_ms)
        if valid != tokens:
            self.tokens[device_id] = valid
            if revoked:
                self.log(logging.INFO, "device_tokens_revoked", device_id=device_id)
        return valid
