"""Phases of the contract test of readers: garbage, duplicates, gaps and reused sequences, one after the other.

Each phase affects all readers at once, either while their processes run or before they start. To get the result of a phase, all
earlier phases run first.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from google.protobuf.message import DecodeError

from services.common.messaging import flow, pull
from tandem.common.v1 import alert_pb2
from tests.support.stream_readers.mesh import CHECK_INTERVAL_S, SERVICES, Connection, ReadersMesh
from tests.support.stream_readers.reader import Message, Reader, garbage_for, no_messages

PATIENCE_S = 40.0
"""Maximum wait for an effect, seconds. On a busy machine, a start alone takes ten seconds."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A fault that all readers of the mesh get at once."""

    name: str
    key: str
    """Prefix of the names of the phase's messages."""
    at_start: bool
    """Whether the fault happens before the processes start. Otherwise it happens while they run."""


GARBAGE = "garbage"
DUPLICATE = "a duplicate"
GAP = "a gap"
REUSE = "a reused sequence"
PHASES = (
    Phase(GARBAGE, "g", at_start=False),
    Phase(DUPLICATE, "d", at_start=False),
    Phase(GARBAGE, "gs", at_start=True),
    Phase(GAP, "h", at_start=False),
    Phase(GAP, "hs", at_start=True),
    Phase(REUSE, "r", at_start=False),
    Phase(REUSE, "rs", at_start=True),
)


def concerns(phase: Phase, reader: Reader) -> bool:
    """Whether a phase applies to a reader."""
    if not reader.service and phase.at_start:
        return False  # each request to such a reader is a start
    if reader.only_at_start and not phase.at_start:
        return False
    if reader.only_garbage:
        return phase.name == GARBAGE
    return reader.at_reuse or phase.name != REUSE


class Phases:
    """The phases on one mesh, and their results by reader."""

    def __init__(self, mesh: ReadersMesh, readers: Sequence[Reader]) -> None:
        self._mesh, self._readers = mesh, readers
        self._results: dict[tuple[str, str], str] = {}
        self._done: set[str] = set()

    def result(self, phase: Phase, reader: Reader) -> str:
        """Failure of a reader in a phase, or an empty text. Runs the phase and all earlier ones first, unless they have run."""
        for earlier in PHASES:
            if earlier.key not in self._done:
                self._done.add(earlier.key)
                asyncio.run(self._run(earlier))
            if earlier == phase:
                break
        return self._results[phase.key, reader.name]

    async def _run(self, phase: Phase) -> None:
        readers = [reader for reader in self._readers if concerns(phase, reader)]
        self._results |= {(phase.key, reader.name): "" for reader in readers}
        async with self._mesh.connected() as connection:
            run = _Run(self._mesh, connection, phase, readers, self._results)
            await run.heal()
            match phase.name:
                case "garbage":
                    await run.garbage()
                case "a duplicate":
                    await run.duplicates()
                case "a gap":
                    await run.gap()
                case _:
                    await run.reuse()
            await run.check_processes()


class _Run:
    """The run of one phase."""

    def __init__(
        self,
        mesh: ReadersMesh,
        connection: Connection,
        phase: Phase,
        readers: Sequence[Reader],
        results: dict[tuple[str, str], str],
    ) -> None:
        self._mesh = mesh
        self._connection = connection
        self._phase = phase
        self._readers = readers
        self._results = results
        self._logged = {name: len(mesh.log(name)) for name in SERVICES} if phase.key != PHASES[0].key else {}

    async def heal(self) -> None:
        """Waits until all processes are ready. If an earlier phase has broken one, purges the streams and restarts all."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._all_ready()
        except (TimeoutError, AssertionError):
            self._mesh.kill()
            await self._connection.purge()
            self._mesh.start()
            async with asyncio.timeout(2 * PATIENCE_S):
                await self._all_ready()
        self._pids = {name: service.pid for name, service in self._mesh.services.items()}

    async def _all_ready(self) -> None:
        await asyncio.gather(*(self._mesh.ready(name) for name in SERVICES))

    # ── the phases ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def garbage(self) -> None:
        """Publishes garbage and misplaced messages, and then valid ones."""
        await self._prepare("x")
        self._stop_if_at_start()
        sequences: dict[str, int] = {}
        for reader in self._readers:
            for subject in reader.garbage:
                for data in garbage_for(subject):
                    ack = await self._connection.publish(subject.format(name=self._name(reader, "j")), data)
                    sequences.setdefault(reader.name, ack.seq)
            await self._publish(await reader.misplaced(self._connection, self._name(reader, "m")))
        await self._publish_valid("x")
        await self._start_if_at_start()
        await self._expect_effects("x")
        for reader in self._readers:
            if reader.misplaced is no_messages or self._failed(reader):
                continue
            if await reader.effects(self._connection, self._name(reader, "m")):
                self._fail(reader, "a message under a foreign subject had an effect")
        await self._each(lambda reader: self._reported(reader, sequences[reader.name]), "no dead letter")

    async def duplicates(self) -> None:
        """Publishes each valid message twice, and another after it. The last one's effect shows that both were read."""
        await self._prepare("x", "y")
        await self._publish_valid("x")
        await self._publish_valid("x")
        await self._publish_valid("y")
        await self._expect_effects("x", "y")
        for reader in self._readers:
            count = await reader.effects(self._connection, self._name(reader, "x"))
            if count > 1 and not reader.counts_duplicates:
                self._fail(reader, f"a duplicate had {count} effects")

    async def gap(self) -> None:
        """Purges the streams before the readers have read their messages, and publishes valid messages after the gap."""
        await self._prepare("x", readers=[reader for reader in self._readers if reader.service])
        processes = self._mesh.services.values()
        if self._phase.at_start:
            self._mesh.kill()
        else:
            for service in processes:
                os.kill(service.pid, signal.SIGSTOP)
        try:
            for subject in {subject for reader in self._readers for subject in reader.garbage}:
                await self._connection.publish(subject.format(name=f"{self._phase.key}-gone"), b"{}")
            await self._connection.purge()
            await self._publish_valid("x")
        finally:
            for service in processes:
                if not self._phase.at_start:
                    os.kill(service.pid, signal.SIGCONT)
        # Readers on request need their prepared messages when they are called, which must come after the purge.
        await self._prepare("x", readers=[reader for reader in self._readers if not reader.service])
        await self._start_if_at_start()
        await self._expect_effects("x")

    async def reuse(self) -> None:
        """Restores an older store, so that new messages get the sequences of messages that were read."""
        await self._prepare("old", "new")
        copy = self._mesh.folder / f"store-{self._phase.key}"
        await self._mesh.restart_server(copy_to=copy)
        await self._publish_valid("old")
        running = [reader for reader in self._readers if not reader.only_at_start]
        await self._each(partial(self._has_effect, which="old"), "the valid message old had no effect", running)
        self._stop_if_at_start()
        await self._mesh.restart_server(put_back=copy)
        await self._publish_valid("new")
        await self._start_if_at_start()
        await self._expect_effects("new")

    async def check_processes(self) -> None:
        """Checks that each service still runs, is ready and has logged no traceback."""
        for name in SERVICES:
            problem = ""
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._mesh.ready(name)
            except (TimeoutError, AssertionError):
                problem = f"{name} isn't ready"
            if not self._mesh.services[name].runs:
                problem = self._mesh.last_words(name)
            elif "Traceback" in self._mesh.log(name)[self._logged.get(name, 0) :]:
                problem = f"{name} has logged a traceback"
            for reader in self._readers:
                if problem and reader.service == name:
                    self._fail(reader, problem)

    # ── parts of the phases ──────────────────────────────────────────────────────────────────────────────────────────

    def _name(self, reader: Reader, which: str) -> str:
        return f"{self._phase.key}-{which}-{reader.name}"

    def _stop_if_at_start(self) -> None:
        if self._phase.at_start:
            self._mesh.kill()

    async def _start_if_at_start(self) -> None:
        if self._phase.at_start:
            self._mesh.start()
            self._pids = {name: service.pid for name, service in self._mesh.services.items()}

    async def _publish(self, messages: Iterable[Message]) -> None:
        for subject, data in messages:
            await self._connection.publish(subject, data)

    async def _prepare(self, *which: str, readers: Sequence[Reader] | None = None) -> None:
        """Publishes the prepared messages of some readers, by default of all, and waits for their effects."""
        readers = self._readers if readers is None else readers
        for label in which:
            for reader in readers:
                await self._publish(await reader.prepare(self._connection, self._name(reader, label)))
        for label in which:
            await self._each(partial(self._prepared, which=label), "the prepared messages had no effect", readers)

    async def _prepared(self, reader: Reader, which: str) -> bool:
        return not reader.prepared or await reader.prepared(self._connection, self._name(reader, which)) > 0

    async def _publish_valid(self, which: str) -> None:
        for reader in self._readers:
            if not self._failed(reader):
                await self._publish(await reader.valid(self._connection, self._name(reader, which)))

    async def _expect_effects(self, *which: str) -> None:
        for label in which:
            await self._each(partial(self._has_effect, which=label), f"the valid message {label} had no effect")

    async def _has_effect(self, reader: Reader, which: str) -> bool:
        return await reader.effects(self._connection, self._name(reader, which)) > 0

    async def _reported(self, reader: Reader, sequence: int) -> bool:
        """Whether a reader has reported the unusable message at a sequence, in its log or as a dead letter."""
        service, event = reader.logs
        if event:
            return f'"event": "{event}"' in self._mesh.log(service)[self._logged.get(service, 0) :]
        return not reader.dead_letter_by or (reader.dead_letter_by, sequence) in await _dead_letters(self._connection)

    async def _each(
        self, is_so: Callable[[Reader], Awaitable[bool]], otherwise: str, readers: Sequence[Reader] | None = None
    ) -> None:
        """Waits until a condition is true for each of some readers, by default all. Readers that have failed are left out."""
        readers = self._readers if readers is None else readers

        async def wait(reader: Reader) -> None:
            error = ""
            try:
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        try:
                            if await is_so(reader):
                                return
                        except TimeoutError:
                            raise
                        except Exception as raised:  # the condition isn't met yet: retry
                            error = f": {type(raised).__name__}: {raised}"
                        if reader.service and not self._mesh.services[reader.service].runs:
                            self._fail(reader, self._mesh.last_words(reader.service))
                            return
                        await asyncio.sleep(CHECK_INTERVAL_S)
            except TimeoutError:
                self._fail(reader, otherwise + error)

        await asyncio.gather(*(wait(reader) for reader in readers if not self._failed(reader)))

    def _failed(self, reader: Reader) -> bool:
        return bool(self._results[self._phase.key, reader.name])

    def _fail(self, reader: Reader, reason: str) -> None:
        if not self._failed(reader):
            self._results[self._phase.key, reader.name] = reason


async def _dead_letters(connection: Connection) -> set[tuple[str, int]]:
    """Readers and sequences of all dead letters."""
    bounds = await connection.bus.bounds_of(flow.DEAD_LETTERS.name)
    letters: set[tuple[str, int]] = set()
    if bounds.first <= bounds.last:
        async for message in pull.between(connection.bus, flow.DEAD_LETTERS.name, bounds.first, last=bounds.last):
            try:
                dead_letter = alert_pb2.DeadLetter.FromString(message.data)
            except DecodeError:
                continue  # this stream has garbage too
            if message.subject.split(".")[1:3] == [flow.DEAD_LETTER_USERS.get(dead_letter.by), dead_letter.by]:
                letters.add((dead_letter.by, dead_letter.sequence))
    return letters
