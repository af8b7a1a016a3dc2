"""What follows from the records: joint cases found, renewed and withdrawn, and the routes of the devices."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.observability.telemetry import logger
from services.common.privacy import sealing
from services.common.rpc.errors import NotFound
from services.registry import device_token, domain, review, similarity, tables, translate
from services.registry.device_token import DeviceToken
from services.registry.domain import Device, ExerciseKind, Order, ProtectedPerson, Tag, Wearer
from services.registry.review import Event, MatchEvidence, MatchLevel, Review, ReviewState
from services.registry.store import Records, StoredCase
from tandem.common.v1 import log_pb2

DAY_MS = 86_400_000


class Cases:
    """Works inside the transaction of whoever changes a record."""

    def __init__(self, clock: MeshClock, partitions: int, warning_key: X25519PublicKey | None) -> None:
        self._clock = clock
        self._partitions = partitions
        self._warning_key = warning_key

    async def refresh_all(self, records: Records, cases: Iterable[StoredCase]) -> None:
        """Renews cases whose tags, devices or records have changed."""
        for case in cases:
            before = await records.reviews.review(case.case_id)
            await self.refresh(
                records, await records.order(case.order_id), await records.wearer(case.wearer_id), before, case
            )

    async def refresh(
        self, records: Records, order: Order, wearer: Wearer, before: Review | None, case: StoredCase | None
    ) -> None:
        """Compares an order and a wearer, whose review and case are given, and does what follows from it."""
        now_ms = self._clock.now_ms()
        level, evidence = self.look(records, order, wearer, before)
        stood = review.stands(before, level, evidence.digest)
        if stood is not None:
            after = _restated(order, wearer, before, stood, evidence, now_ms)
            if after != before:
                await records.reviews.put_review(after)
            if after.state is ReviewState.OPEN and (before is None or before.state is not ReviewState.OPEN):
                await self.tell(records, after, Event.REVIEW_OPENED, case)
                bits = round(evidence.weight_bits, 1)
                records.afterwards.append(
                    partial(logger().info, "review_opened", case_id=after.case_id, weight_bits=bits)
                )
        await self.apply(records, order, wearer, stood is not None and stood[1], case)

    def look(
        self, records: Records, order: Order, wearer: Wearer, before: Review | None
    ) -> tuple[MatchLevel, MatchEvidence]:
        """What the two records alone say now."""
        level, comparison = similarity.compared(order, wearer)
        undecided = before is None or before.state is ReviewState.OPEN
        if undecided and level is not MatchLevel.EXACT and order.ends_ms <= self._clock.now_ms():
            level = MatchLevel.NONE  # nobody needs to look at an order that is over
        if level is MatchLevel.NONE and before is None:
            return level, MatchEvidence(b"", comparison.weight, ())
        digest = records.reviews.evidence_digest(similarity.evidence_text(order, wearer))
        return level, MatchEvidence(digest, comparison.weight, similarity.reasons_of(comparison))

    async def tell(self, records: Records, about: Review, event: Event, case: StoredCase | None) -> None:
        """Tells those who watch what became of a review, whose case is given."""
        now_ms = self._clock.now_ms()
        matched_at_ms = case.matched_at_ms if case else now_ms
        await records.reviews.add_event(event, about.case_id, about.order_id, about.wearer_id, matched_at_ms, now_ms)

    async def tell_all(self, records: Records, order_id: str, event: Event) -> None:
        """Tells those who watch of each wearer against whom an order is enforced."""
        for case in await records.cases_of_order(order_id):
            if case.withdrawn_at_ms is None:
                await records.reviews.add_event(
                    event, case.case_id, order_id, case.wearer_id, case.matched_at_ms, self._clock.now_ms()
                )

    async def apply(
        self, records: Records, order: Order, wearer: Wearer, holds: bool, before: StoredCase | None
    ) -> None:
        """Makes, renews or withdraws the joint case of an order and a wearer, and tells the log."""
        now_ms = self._clock.now_ms()
        held = before is not None and before.withdrawn_at_ms is None
        if not holds and not held:
            return
        case_id = domain.case_id_of(order.order_id, wearer.wearer_id)
        # Versions follow the clock, so that a database that was lost and is filled again outruns what the log holds.
        version = max(before.version + 1 if before else 1, now_ms)
        devices = await records.devices_of(order.protected_person_ids)
        case = domain.build_case(order, wearer, await records.tags_on(wearer.wearer_id), devices)
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
        # Routes before the case: devices are heard in its partition from the moment that the fold knows it.
        for device in devices:
            await self._send_device_route(records, device)
        await records.enqueue(self.subject(case.wearer_id), f"{case_id}:{version}", entry)
        # That a canary's records are joined is no news for the agencies.
        if holds != held and order.exercise is not ExerciseKind.CANARY:
            event = Event.MATCHED if holds else Event.WITHDRAWN
            await records.reviews.add_event(event, case_id, order.order_id, wearer.wearer_id, matched_at_ms, now_ms)
            say = partial(logger().info, "order_matched") if holds else partial(logger().warning, "match_withdrawn")
            records.afterwards.append(partial(say, case_id=case_id))

    async def _sealed_contact(self, records: Records, person_id: str) -> bytes:
        """How a person is warned, as only the warning leg can read it; empty where it isn't known."""
        if self._warning_key is None:
            return b""
        try:
            person = await records.find(tables.protected_persons, ProtectedPerson, person_id)
        except NotFound:  # destroyed, while a case that is long over is told of once more
            return b""
        if person.contact is None:
            return b""
        return sealing.seal(translate.contact_to_proto(person.contact), person_id, self._warning_key)

    def subject(self, wearer_id: str) -> str:
        """Subject of the cases of a wearer."""
        (partition,) = domain.tag_partitions(wearer_id, self._partitions)
        return flow.log_subject(partition, "case")

    async def send_routes_of(self, records: Records, person_ids: Iterable[str]) -> None:
        """Sends the routes of these persons' devices where they changed."""
        for device in await records.devices_of(list(person_ids)):
            await self._send_device_route(records, device)

    async def send_tag_routes_of(self, records: Records, wearer_id: str) -> None:
        """Sends the routes of a wearer's tags where they changed."""
        for tag in await records.tags_on(wearer_id):
            await self._send_tag_route(records, tag)

    async def send_route(self, records: Records, device_id: str, renew: bool = False) -> None:
        """Sends the route of a device where it changed, or in any case (`renew`)."""
        tag = await records.tag(device_id)
        if tag:
            await self._send_tag_route(records, tag, renew)
            return
        device = await records.device(device_id)
        if device is None:
            raise LookupError("a route of a device that isn't stored")
        await self._send_device_route(records, device, renew)

    async def has_ended(self, records: Records, device: Tag | Device) -> bool:
        """Whether nobody may report for a device any more: it is out of service, or its wearer or person is over."""
        if device.removed_at_ms is not None:
            return True
        if isinstance(device, Tag):
            return await records.keys.is_over(tables.wearers, device.wearer_id)
        return await records.keys.is_over(tables.protected_persons, device.person_id)

    async def _send_tag_route(self, records: Records, tag: Tag, renew: bool = False) -> None:
        await self._send(records, tag, domain.tag_partitions(tag.wearer_id, self._partitions), renew)

    async def _send_device_route(self, records: Records, device: Device, renew: bool = False) -> None:
        cases = await records.cases_of_person(device.person_id)
        kept_away = [case.wearer_id for case in cases if case.withdrawn_at_ms is None]
        partitions = domain.device_partitions(device.person_id, kept_away, self._partitions)
        await self._send(records, device, partitions, renew)

    async def _send(self, records: Records, device: Tag | Device, partitions: tuple[int, ...], renew: bool) -> None:
        device_id, revoked = device.device_id, await self.has_ended(records, device)
        tokens = await self._tokens_of(records, device_id, revoked)
        route = translate.route_to_proto(device, partitions, revoked, tokens).SerializeToString(deterministic=True)
        last_version, last_route = await records.route(device_id) or (0, b"")
        if route == last_route and not renew:
            return
        # The clock's, like a case's version: a lost database must not repeat message ids that the bucket has seen.
        version = max(last_version + 1, self._clock.now_ms())
        await records.put_route(device_id, version, route, self._clock.now_ms() // DAY_MS)
        await records.enqueue(f"$KV.{flow.DEVICES_BUCKET}.{device_id}", f"route:{device_id}:{version}", route)

    async def _tokens_of(self, records: Records, device_id: str, revoked: bool) -> list[DeviceToken]:
        """Tokens of a device that are good; the others, of a revoked device all, are forgotten."""
        tokens = await records.tokens.of(device_id)
        good = [] if revoked else device_token.good_at(tokens, self._clock.now_ms())
        if good != tokens:
            await records.tokens.put(device_id, good)
            if revoked:
                records.afterwards.append(partial(logger().info, "device_tokens_revoked", device_id=device_id))
        return good


def _restated(
    order: Order,
    wearer: Wearer,
    before: Review | None,
    stood: tuple[ReviewState, bool],
    evidence: MatchEvidence,
    now_ms: int,
) -> Review:
    if before is not None:
        return review.restated(before, *stood, evidence, now_ms)
    case_id = domain.case_id_of(order.order_id, wearer.wearer_id)
    return Review(case_id, order.order_id, wearer.wearer_id, *stood, evidence, now_ms)
