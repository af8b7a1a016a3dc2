"""Records of exercises never match live records, and their snapshots in the log state the exercise. On both engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, InvalidField, NotFound
from services.common.storage import db
from services.registry.agencies.exercises import ExerciseRecords
from services.registry.domain.lifecycle import PutOutcome
from services.registry.domain.records import ExerciseKind, ListedKind, Order, Wearer
from services.registry.domain.reviews import Review, ReviewState
from services.registry.keys import Vault
from services.registry.reconciliation import ReconciliationRepository
from services.registry.records import translate
from services.registry.records.kinds import WEARERS
from services.registry.tables import MIGRATIONS, cases, match_events
from services.registry.working_set.working_set import WorkingSet
from tandem.common.v1 import exercise_pb2, log_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore, read_record

KINDS = (None, ExerciseKind.DRILL, ExerciseKind.CANARY)


@asynccontextmanager
async def opened(where: Path | str) -> AsyncIterator[RegistryCore]:
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), MeshClock())
        await registry.prepare("log 1")
        yield registry


def number_of(kind: ExerciseKind | None) -> exercise_pb2.Exercise.ValueType:
    return exercise_pb2.Exercise.Value(kind.name) if kind else exercise_pb2.EXERCISE_UNSPECIFIED


def wearer(kind: ExerciseKind | None, version: int = 1) -> Wearer:
    parsed = translate.parse_wearer(records.wearer(f"w-{kind}", version=version))
    return replace(parsed, exercise=kind)


def order(kind: ExerciseKind | None, version: int = 1) -> Order:
    parsed = translate.parse_order(records.order(f"o-{kind}", version=version))
    return replace(parsed, exercise=kind)


def reviews_of(working: WorkingSet, wearer_id: str) -> list[Review]:
    return working.reviews.of_wearer(wearer_id)


async def snapshots(registry: RegistryCore) -> list[log_pb2.CaseSnapshot]:
    async with registry.database.transaction() as connection:
        entries = (await connection.execute(sa.select(cases.c.entry).order_by("sequence"))).scalars()
    return [log_pb2.LogEntry.FromString(entry).case for entry in entries]


@pytest.mark.parametrize("wearers_first", [True, False])
async def test_records_with_one_number_match_only_their_own_kind_of_exercise(
    where: Path | str, wearers_first: bool
) -> None:
    async with opened(where) as registry:
        await registry.police.put_protected_person(translate.parse_protected_person(records.person()))
        puts = [
            (registry.ministry.put_wearer, [wearer(kind) for kind in KINDS]),
            (registry.police.put_order, map(order, KINDS)),
        ]
        for put, parsed_records in puts if wearers_first else reversed(puts):
            for record in parsed_records:
                await put(record)  # type: ignore[operator]
        found = {(snapshot.order_id, snapshot.wearer_id): snapshot.exercise for snapshot in await snapshots(registry)}
    assert found == {(f"o-{kind}", f"w-{kind}"): number_of(kind) for kind in KINDS}


async def test_a_record_cannot_be_switched_between_live_and_exercise(where: Path | str) -> None:
    async with opened(where) as registry:
        await registry.police.put_protected_person(translate.parse_protected_person(records.person()))
        for kind in KINDS:
            await registry.ministry.put_wearer(wearer(kind))
            await registry.police.put_order(order(kind))
        for kind in KINDS:
            for other in {*KINDS} - {kind}:
                with pytest.raises(InvalidField) as refused:
                    await registry.ministry.put_wearer(replace(wearer(kind, version=2), exercise=other))
                assert refused.value.field == "wearer.exercise"
                with pytest.raises(InvalidField) as refused:
                    await registry.police.put_order(replace(order(kind, version=2), exercise=other))
                assert refused.value.field == "order.exercise"
            assert await registry.ministry.put_wearer(wearer(kind, version=2)) is PutOutcome.STORED
            assert (await registry.police.put_order(order(kind, version=2)))[0] is PutOutcome.STORED


@pytest.mark.parametrize("exercise", [exercise_pb2.CANARY, 9])
def test_an_agency_may_put_live_records_and_drills_only(exercise: exercise_pb2.Exercise.ValueType) -> None:
    wearer_message, order_message = records.wearer(), records.order()
    for drill in (exercise_pb2.EXERCISE_UNSPECIFIED, exercise_pb2.DRILL):
        wearer_message.exercise = order_message.exercise = drill
        assert translate.parse_wearer(wearer_message).exercise is translate.parse_order(order_message).exercise
    wearer_message.exercise = order_message.exercise = exercise
    with pytest.raises(InvalidField) as refused:
        translate.parse_wearer(wearer_message)
    assert refused.value.field == "exercise"
    with pytest.raises(InvalidField) as refused:
        translate.parse_order(order_message)
    assert refused.value.field == "exercise"


async def test_synthetic_records_start_are_prolonged_and_end(where: Path | str) -> None:
    clock, until_ms = MeshClock(), MeshClock().now_ms() + 3_600_000
    async with opened(where) as registry:
        exercises = registry.exercises
        canary, drill = ExerciseRecords(ExerciseKind.CANARY, "a"), ExerciseRecords(ExerciseKind.DRILL, "a")
        for records_, wearers in ((canary, 6), (drill, 1)):
            await exercises.put(records_, wearers, "exercise", until_ms=until_ms)
        found = await snapshots(registry)
        # Each wearer matches only their own order, although all records are generated by the same rule.
        assert sorted((snapshot.order_id[-1], snapshot.wearer_id[-1]) for snapshot in found) == sorted(
            [(str(n), str(n)) for n in range(6)] + [("0", "0")]
        )
        await exercises.put(canary, 6, "exercise", until_ms=until_ms + 1)
        assert {snapshot.valid_until_ms for snapshot in await snapshots(registry)} == {until_ms, until_ms + 1}
        async with registry.transactions.open() as stored:
            # Synthetic records aren't part of reconciliation, and a canary's match gives no event.
            assert await ReconciliationRepository(stored.connection, stored.vault).listed(list(ListedKind)) == []
        reviews = [
            review
            for n in range(6)
            for review in await registry.transactions.change(partial(reviews_of, wearer_id=canary.wearer_id(n)))
        ]
        assert len(reviews) == 6 and all(review.state is not ReviewState.OPEN for review in reviews)
        async with registry.database.transaction() as connection:
            events = (await connection.execute(sa.select(match_events.c.order_id))).scalars().all()
        assert set(events) == {drill.order_id(0)}
        for _ in range(2):
            await exercises.end(canary)
        over = [snapshot for snapshot in await snapshots(registry) if snapshot.order_id.startswith("exercise.canary.")]
        assert len(over) == 6 and all(snapshot.valid_until_ms <= clock.now_ms() for snapshot in over)
        with pytest.raises(FailedPrecondition):
            await exercises.put(canary, 6, "exercise", until_ms=until_ms)
        # A put of the drill broke off before the tag of its second wearer.
        await registry.ministry.put_wearer(drill.wearer(1))
        await exercises.end(drill)
        async with registry.transactions.open() as stored:
            ended = [await read_record(stored, WEARERS, drill.wearer_id(number)) for number in range(2)]
        assert [wearer.end is not None for wearer in ended] == [True, True]
        with pytest.raises(NotFound):
            await exercises.end(ExerciseRecords(ExerciseKind.CANARY, "b"))
