"""Joint cases and device routes that are derived from the records: created, renewed, withdrawn and enqueued for the log."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.observability.telemetry import logger
from services.common.privacy import sealing
from services.common.rpc.errors import NotFound
from services.registry import domain
from services.registry.device_tokens import domain as device_token
from services.registry.device_tokens.domain import DeviceToken
from services.registry.domain import Device, ExerciseKind, Order, ProtectedPerson, Tag, Wearer
from services.registry.matching import similarity
from services.registry.records import tables, translate
from services.registry.records.store import Records, StoredCase
from services.registry.reviews import domain as review
from services.registry.reviews.domain import Event, MatchEvidence, MatchLevel, Review, ReviewState
from services.registry.routes import domain as routing
from tandem.common.v1 import log_pb2

DAY_MS = 86_400_000


class Cases:
    """Derives joint cases and routes inside the transaction that changes a record."""

    def __init__(self, clock: MeshClock, partitions: int, warning_key: X25519PublicKey | None) -> None:
        self._clock = clock
        self._partitions = partitions
        self._warning_key = warning_key

    async def refresh_all(self, records: Records, cases: Iterable[StoredCase]) -> None:
        """Recompute cases whose tags, devices or records have changed."""
        for case in cases:
            before = await records.reviews.review(case.case_id)
            await self.refresh(
                records,
                await records.order(case.order_id),
                await records.wearer(case.wearer_id),
                before=before,
                case=case,
            )

    async def refresh(
        self, records: Records, order: Order, wearer: Wearer, *, before: Review | None, case: StoredCase | None
    ) -> None:
        """Compare an order and a wearer, then update their review and their joint case.

        `before` is the stored review of the pair, `case` its stored joint case.
        """
        now_ms = self._clock.now_ms()
        level, evidence = self.compare(records, order, wearer, before=before)
        decided = review.next_state(before, level, evidence.digest)
        if decided is not None:
            after = _updated(order, wearer, before, decided=decided, evidence=evidence, now_ms=now_ms)
            if after != before:
                await records.reviews.put_review(after)
            if after.state is ReviewState.OPEN and (before is None or before.state is not ReviewState.OPEN):
                await self.add_event(records, after, Event.REVIEW_OPENED, case=case)
                bits = round(evidence.weight_bits, 1)
                records.after_commit.append(
                    partial(logger().info, "review_opened", case_id=after.case_id, weight_bits=bits)
                )
        await self.apply(records, order, wearer, holds=decided is not None and decided[1], before=case)

    def compare(
        self, records: Records, order: Order, wearer: Wearer, *, before: Review | None
    ) -> tuple[MatchLevel, MatchEvidence]:
        """Match level and evidence from the two records alone, without any decision by a person."""
        level, comparison = similarity.compared(order, wearer)
        undecided = before is None or before.state is ReviewState.OPEN
        if undecided and level is not MatchLevel.EXACT and order.ends_ms <= self._clock.now_ms():
            level = MatchLevel.NONE  # an order that has ended needs no review
        if level is MatchLevel.NONE and before is None:
            return level, MatchEvidence(b"", comparison.weight, ())
        digest = records.reviews.evidence_digest(similarity.evidence_text(order, wearer))
        return level, MatchEvidence(digest, comparison.weight, similarity.reasons_of(comparison))

    async def add_event(self, records: Records, pair: Review, event: Event, *, case: StoredCase | None) -> None:
        """Add an event about a review to the stream of matches. `case` is the stored case of the pair, if any."""
        now_ms = self._clock.now_ms()
        matched_at_ms = case.matched_at_ms if case else now_ms
        await records.reviews.add_event(
            event, pair.case_id, pair.order_id, wearer_id=pair.wearer_id, matched_at_ms=matched_at_ms, at_ms=now_ms
        )

    async def add_event_for_order(self, records: Records, order_id: str, event: Event) -> None:
        """Add an event to the stream of matches for each wearer against whom an order is enforced."""
        for case in await records.cases_of_order(order_id):
            if case.withdrawn_at_ms is None:
                await records.reviews.add_event(
                    event,
                    case.case_id,
                    order_id,
                    wearer_id=case.wearer_id,
                    matched_at_ms=case.matched_at_ms,
                    at_ms=self._clock.now_ms(),
                )

    async def apply(
        self, records: Records, order: Order, wearer: Wearer, *, holds: bool, before: StoredCase | None
    ) -> None:
        """Create, renew or withdraw the joint case of an order and a wearer, and enqueue its snapshot for the log."""
        now_ms = self._clock.now_ms()
        held = before is not None and before.withdrawn_at_ms is None
        if not holds and not held:
            return
        case_id = domain.case_id_of(order.order_id, wearer.wearer_id)
        # Versions follow the clock, so that a database that was lost and refilled uses greater versions than the log holds.
        version = max(before.version + 1 if before else 1, now_ms)
        devices = await records.devices_of(order.protected_person_ids)
        case = domain.build_case(order, wearer, await records.tags_on(wearer.wearer_id), devices=devices)
        if not holds:
            case = domain.withdraw(case, now_ms)
        snapshot = translate.case_to_proto(case, version)
        for person in snapshot.persons:
            person.sealed_contact = await self._sealed_contact(records, person.person_id)
        entry = log_pb2.LogEntry(case=snapshot).SerializeToString(deterministic=True)
        matched_at_ms = before.matched_at_ms if before else now_ms
        await records.put_case(
            case_id,
            {
                "order_id": order.order_id,
                "wearer_id": wearer.wearer_id,
                "version": version,
                "matched_at_ms": matched_at_ms,
                "withdrawn_at_ms": None if holds else now_ms,
                "valid_until_ms": case.valid_until_ms,
                "entry": entry,
                "sent_day": now_ms // DAY_MS,
            },
            new=before is None,
        )
        # Routes go before the case, so that reports reach the case's partition by the time the fold knows the case.
        for device in devices:
            await self._send_device_route(records, device)
        await records.enqueue(self.subject(case.wearer_id), f"{case_id}:{version}", entry)
        # The agencies get no events about the synthetic records of a canary.
        if holds != held and order.exercise is not ExerciseKind.CANARY:
            event = Event.MATCHED if holds else Event.WITHDRAWN
            await records.reviews.add_event(
                event, case_id, order.order_id, wearer_id=wearer.wearer_id, matched_at_ms=matched_at_ms, at_ms=now_ms
            )
            log = partial(logger().info, "order_matched") if holds else partial(logger().warning, "match_withdrawn")
            records.after_commit.append(partial(log, case_id=case_id))

    async def _sealed_contact(self, records: Records, person_id: str) -> bytes:
        """Contact of a person, sealed for the warning leg; empty if there is no contact or no public key."""
        if self._warning_key is None:
            return b""
        try:
            person = await records.find(tables.protected_persons, ProtectedPerson, person_id)
        except NotFound:  # the person was destroyed, and a case that ended long ago is sent once more
            return b""
        if person.contact is None:
            return b""
        return sealing.seal(translate.contact_to_proto(person.contact), person_id, self._warning_key)

    def subject(self, wearer_id: str) -> str:
        """Subject of a wearer's cases in the log."""
        (partition,) = routing.tag_partitions(wearer_id, self._partitions)
        return flow.log_subject(partition, "case")

    async def send_routes_of(self, records: Records, person_ids: Iterable[str]) -> None:
        """Enqueue the changed routes of these persons' devices."""
        for device in await records.devices_of(list(person_ids)):
            await self._send_device_route(records, device)

    async def send_tag_routes_of(self, records: Records, wearer_id: str) -> None:
        """Enqueue the changed routes of a wearer's tags."""
        for tag in await records.tags_on(wearer_id):
            await self._send_tag_route(records, tag)

    async def send_route(self, records: Records, device_id: str, renew: bool = False) -> None:
        """Enqueue the route of a device if it changed; with `renew` also if it didn't."""
        tag = await records.tag(device_id)
        if tag:
            await self._send_tag_route(records, tag, renew)
            return
        device = await records.device(device_id)
        if device is None:
            raise LookupError(f"device {device_id} isn't stored, so it has no route")
        await self._send_device_route(records, device, renew)

    async def has_ended(self, records: Records, device: Tag | Device) -> bool:
        """Whether a device may no longer report: it is out of service, or its wearer or person has ended."""
        if device.removed_at_ms is not None:
            return True
        if isinstance(device, Tag):
            return await records.keys.is_over(tables.wearers, device.wearer_id)
        return await records.keys.is_over(tables.protected_persons, device.person_id)

    async def _send_tag_route(self, records: Records, tag: Tag, renew: bool = False) -> None:
        await self._send(records, tag, routing.tag_partitions(tag.wearer_id, self._partitions), renew=renew)

    async def _send_device_route(self, records: Records, device: Device, renew: bool = False) -> None:
        cases = await records.cases_of_person(device.person_id)
        kept_away = [case.wearer_id for case in cases if case.withdrawn_at_ms is None]
        partitions = routing.device_partitions(device.person_id, kept_away, self._partitions)
        await self._send(records, device, partitions, renew=renew)

    async def _send(self, records: Records, device: Tag | Device, partitions: tuple[int, ...], *, renew: bool) -> None:
        device_id, revoked = device.device_id, await self.has_ended(records, device)
        tokens = await self._tokens_of(records, device_id, revoked)
        route = translate.route_to_proto(device, partitions, revoked, tokens=tokens).SerializeToString(
            deterministic=True
        )
        last_version, last_route = await records.route(device_id) or (0, b"")
        if route == last_route and not renew:
            return
        # Follows the clock, like the version of a case: after a lost database, message ids must not repeat.
        version = max(last_version + 1, self._clock.now_ms())
        await records.put_route(device_id, version, route, day=self._clock.now_ms() // DAY_MS)
        await records.enqueue(f"$KV.{flow.DEVICES_BUCKET}.{device_id}", f"route:{device_id}:{version}", route)

    async def _tokens_of(self, records: Records, device_id: str, revoked: bool) -> list[DeviceToken]:
        """Valid tokens of a device. Deletes expired tokens, and all tokens of a revoked device."""
        tokens = await records.tokens.of(device_id)
        valid = [] if revoked else device_token.valid_at(tokens, self._clock.now_ms())
        if valid != tokens:
            await records.tokens.put(device_id, valid)
            if revoked:
                records.after_commit.append(partial(logger().info, "device_tokens_revoked", device_id=device_id))
        return valid


def _updated(
    order: Order,
    wearer: Wearer,
    before: Review | None,
    *,
    decided: tuple[ReviewState, bool],
    evidence: MatchEvidence,
    now_ms: int,
) -> Review:
    if before is not None:
        return review.updated(before, *decided, evidence=evidence, now_ms=now_ms)
    case_id = domain.case_id_of(order.order_id, wearer.wearer_id)
    return Review(case_id, order.order_id, wearer.wearer_id, *decided, evidence, now_ms)
