"""One simulation: a world of a seed with mesh, actors, faults and judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from services.common.messaging import flow
from tests.simulation.actors.agencies import Agencies
from tests.simulation.actors.desk import Desk
from tests.simulation.actors.head_end import HeadEnd
from tests.simulation.actors.patrols import Patrols
from tests.simulation.actors.reviewer import Reviewer
from tests.simulation.actors.supervisor import Supervisor
from tests.simulation.actors.town import Town
from tests.simulation.jetstream.stream import MemoryStream, Stored
from tests.simulation.judges.account import AccountJudge, ClearingJudge
from tests.simulation.judges.fold import EvaluatorsJudge, FoldJudge
from tests.simulation.judges.judge import Case, Failure, Judge
from tests.simulation.judges.lists import ListJudge
from tests.simulation.judges.offers import OffersJudge
from tests.simulation.judges.orders import RecordsJudge
from tests.simulation.judges.reports import OverloadJudge, ReportsJudge
from tests.simulation.judges.response import ResponseJudge
from tests.simulation.judges.silence import LedgerJudge, SilenceJudge, place_of
from tests.simulation.judges.warned import WarningJudge
from tests.simulation.kernel import host
from tests.simulation.kernel.guard import Guard
from tests.simulation.kernel.journal import Journal, Line
from tests.simulation.kernel.world import World
from tests.simulation.mesh import tempo
from tests.simulation.mesh.faults import Faults
from tests.simulation.mesh.moments import Moment, moments_of
from tests.simulation.mesh.processes import Mesh
from tests.simulation.mutants import MUTANTS

HOUSEHOLDS = (2, 6)
ROSTER_SHARE = 0.4
"""Share of the seeds in which the police have patrol cars. In all others offers go to the desk."""
TORN_SHARE = 0.35
"""Share of the seeds in which the server may lose its newest messages. All others may lose nothing."""


@dataclass(slots=True)
class Outcome:
    """What a simulation has shown."""

    seed: int
    digest: str = ""
    events: int = 0
    elapsed_s: float = 0.0
    """Simulated time up to the end or the first failure, seconds."""
    failures: list[Failure] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """The newest log lines of a failed simulation."""
    alerts: int = 0
    steps: int = 0
    reports: int = 0
    notices: int = 0


class Plan(NamedTuple):
    """What to simulate for each seed."""

    hours: float
    with_faults: bool = True
    mutant: str = ""
    """Defect of `mutants.MUTANTS` to put into the services. Empty, the default, for none."""
    is_guarded: bool = False
    """Whether a contact of the simulated code with the machine is a failure. It takes five times as long."""
    trace: str = ""
    """File for a line for each callback and each fact. Empty, the default, for none."""
    left_out: frozenset[int] = frozenset()
    """Numbers of the faults, from 0, that are drawn and not made."""


def simulate(seed: int, plan: Plan, folder: Path) -> Outcome:
    """Simulates a mesh for some hours, up to the first failure. Call it once in an operating system process."""
    world = World(seed)
    guard = Guard(world) if plan.is_guarded else None
    world.trace_to(plan.trace)
    journal = Journal(world)
    mesh = Mesh(world, folder, journal)
    host.install(world, journal)
    tempo.lengthen()
    MUTANTS.get(plan.mutant, _no_defect)()
    duration_s = plan.hours * 3600
    least, most = HOUSEHOLDS
    town = Town(world.random, households=world.random.randint(least, most), duration_s=duration_s)
    agencies, head_end = Agencies(town), HeadEnd(world, town)
    desks = {leg: Desk(world, leg) for leg in ("probation", "police")}
    reviewer, supervisor = Reviewer(world, town), Supervisor(world)
    patrols = Patrols(world, town, desks["police"], has_roster=world.random.random() < ROSTER_SHARE)
    faults = Faults(mesh, duration_s=duration_s, torn_tails=world.random.random() < TORN_SHARE)
    faults.left_out = plan.left_out
    outcome = Outcome(seed)

    def fail(failure: Failure) -> None:
        outcome.failures.append(failure)
        world.end()

    case = Case(mesh, faults, town, head_end, desks, fail=fail)
    faults.on_flood = head_end.flood
    faults.directed.on_absence = lambda leg, seconds: desks[leg].leave(seconds)
    agencies.on_record = partial(faults.moment, Moment.RECORD)
    folded = FoldJudge(case)
    judges: list[Judge] = [
        folded,
        EvaluatorsJudge(case),
        AccountJudge(case, folded),
        ClearingJudge(case),
        OverloadJudge(case),
        ReportsJudge(case),
        ResponseJudge(case),
        OffersJudge(case),
        WarningJudge(case),
        RecordsJudge(case, agencies),
        SilenceJudge(case),
        LedgerJudge(case, folder, reviewer),
        ListJudge(case, supervisor),
    ]
    _watch(mesh, faults, judges)
    mesh.start()
    for name, main in (
        ("agencies", agencies.run),
        ("head-end", head_end.run),
        ("patrols", patrols.run),
        ("reviewer", reviewer.run),
        ("supervisor", supervisor.run),
    ):
        mesh.add_actor(name, main)
    for leg, desk in desks.items():
        mesh.add_actor(f"desk-{leg}", desk.run)
    if plan.with_faults:
        faults.start()
    _each_second(world, judges)
    if guard:
        guard.start()
    world.run(duration_s)
    if world.is_stuck:
        fail(Failure("world", world.elapsed_s, "time stands still: events follow one another without a pause"))
    if guard:
        guard.stop()
        outcome.failures += [Failure("machine", world.elapsed_s, f"the world met {text}") for text in guard.found]
    if not outcome.failures:
        _finish(judges)
        refusals = [*agencies.failed, *patrols.refusals, *reviewer.refusals, *supervisor.refusals]
        refusals += [text for desk in desks.values() for text in desk.refusals]
        refusals += ends_of_actors(mesh)
        outcome.failures += [Failure("actor", world.elapsed_s, text) for text in refusals]
    outcome.digest = world.digest
    outcome.events = world.events
    outcome.faults = faults.made
    outcome.elapsed_s = world.elapsed_s
    outcome.alerts = mesh.server.streams[flow.ALERTS.name].last_sequence
    outcome.steps = mesh.server.streams[flow.INCIDENTS.name].last_sequence
    outcome.reports, outcome.notices = len(head_end.accepted), len(head_end.notices)
    if outcome.failures:
        outcome.lines = [str(line) for line in journal.lines]
    return outcome


def ends_of_actors(mesh: Mesh) -> list[str]:
    """Errors with which actors have ended. The supervisor starts them again, so without this nobody would notice."""
    actors = [process for process in mesh.processes.values() if process not in mesh.services]
    ends = [(process.name, error) for process in actors for error in process.exits if error is not None]
    return [f"{name} ended by itself: {place_of(error)}" for name, error in ends]


def _no_defect() -> None:
    """In the place of a mutant."""


def _watch(mesh: Mesh, faults: Faults, judges: list[Judge]) -> None:
    """Shows judges and the digest each stored message."""

    def created(stream: MemoryStream) -> None:
        stream.on_stored.append(_noting(mesh.world, stream.name, judges))
        stream.on_stored.append(partial(_note_moments, faults, stream.name))

    def torn(stream: str, first_lost: int) -> None:
        for judge in judges:
            judge.torn(stream, first_lost)

    def noted(line: Line) -> None:
        if line.event == "checkpoint_written":
            faults.note_checkpoint(line.process)
        elif line.event == "warning_opened":
            faults.moment(Moment.WARNING)

    mesh.journal.on_line.append(noted)
    mesh.server.on_created.append(created)
    mesh.server.on_acknowledged = partial(faults.moment, Moment.ACKNOWLEDGEMENT)
    faults.on_torn = torn


def _note_moments(faults: Faults, stream: str, message: Stored) -> None:
    for moment, process in moments_of(stream, message.data):
        faults.moment(moment, process)


def _noting(world: World, name: str, judges: list[Judge]) -> Callable[[Stored], None]:
    def stored(message: Stored) -> None:
        content = blake2b(message.data, digest_size=8).hexdigest()
        world.note(f"{name} {message.sequence} {message.subject} {content}")
        for judge in judges:
            judge.stored(name, message)

    return stored


def _finish(judges: list[Judge]) -> None:
    for judge in judges:
        judge.finish()


def _each_second(world: World, judges: list[Judge]) -> None:
    def check() -> None:
        for judge in judges:
            judge.each_second()
        world.after(1.0, check)

    world.after(1.0, check)
