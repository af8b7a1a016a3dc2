"""Runs simulations: `python -m tests.simulation --seeds 10 --hours 1`. See docs/explanation/simulation.md.

Each seed has an operating system process of its own, because a world replaces the process's clock and randomness. The exit code is 1 if
a seed failed.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import process_time
from typing import NamedTuple

from tests.simulation.kernel import schemas
from tests.simulation.mutants import HARMLESS, MUTANTS, suite
from tests.simulation.run import Outcome, Plan, simulate

MEMORY = Path("/dev/shm")  # noqa: S108  # a folder of its own is made in it
SHOWN_LINES = 60
MAX_HOURS = 24
"""Longest simulation, hours: a world keeps everything that it has stored in memory."""


class _Chosen(NamedTuple):
    """A mutant of the command line."""

    name: str
    seed: int | None = None
    """The only seed to try; None for all."""


def _chosen(text: str) -> _Chosen:
    name, _, seed = text.partition(":")
    if name not in MUTANTS or not (seed.isdecimal() or not seed):
        raise argparse.ArgumentTypeError(f"{text!r} isn't one of {', '.join(sorted(MUTANTS))}")
    return _Chosen(name, int(seed) if seed else None)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number from 1 on (example: 20)")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours <= MAX_HOURS:
        raise argparse.ArgumentTypeError(
            f"{text!r} isn't a duration above 0 and up to {MAX_HOURS} hours (example: 0.34)"
        )
    return hours


def _numbers_of_faults(text: str) -> frozenset[int]:
    numbers = [number for number in text.split(",") if number]
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} isn't a list of numbers of faults (example: 0,3,4)")
    return frozenset(map(int, numbers))


def parser_of_options() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_count, default=1, help="number of seeds, from --first on")
    parser.add_argument("--first", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--hours", type=_hours, default=1.0, help="simulated hours for each seed (default 1)")
    parser.add_argument("--workers", type=_count, default=os.cpu_count() or 1, help="seeds at the same time")
    parser.add_argument("--no-faults", action="store_true", help="make no faults: only people and devices misbehave")
    parser.add_argument("--lines", type=_count, default=SHOWN_LINES, help="log lines to show for a failed seed")
    parser.add_argument(
        "--mutant",
        action="append",
        default=[],
        type=_chosen,
        metavar="NAME[:SEED]",
        help="put a defect into the services; with --mutants, try this seed alone",
    )
    parser.add_argument(
        "--mutants", action="store_true", help="run each defect until a seed finds it, and print a table"
    )
    parser.add_argument("--suite", action="store_true", help="run the tests that concern each defect, with the defect")
    parser.add_argument(
        "--guard", action="store_true", help="fail if simulated code reads the machine's clock or entropy"
    )
    parser.add_argument(
        "--trace", default="", metavar="FILE", help="write each callback, to compare two runs of a seed"
    )
    parser.add_argument(
        "--without",
        default=frozenset(),
        type=_numbers_of_faults,
        metavar="N,N",
        help="numbers of faults to leave out",
    )
    parser.add_argument("--shrink", action="store_true", help="find the few faults that the failure of --first needs")
    return parser


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads a command line. Ends the process with the option and a reason if an option can't work or would have no effect."""
    parser = parser_of_options()
    given = parser.parse_args(arguments)
    tries_many, seeds_of_mutants = given.mutants or given.suite, [mutant.seed for mutant in given.mutant]
    mistakes = {
        "--trace writes the run of one seed: leave out --seeds, --shrink, --mutants and --suite": (
            given.trace and (given.seeds > 1 or given.shrink or tries_many)
        ),
        f"--trace: the folder of {given.trace!r} doesn't exist": not Path(given.trace).absolute().parent.is_dir(),
        "--shrink works on the one seed of --first: leave out --seeds": given.shrink and given.seeds > 1,
        "--mutant: several defects, or a defect with its seed (NAME:SEED), need --mutants": (
            not tries_many and (len(given.mutant) > 1 or any(seed is not None for seed in seeds_of_mutants))
        ),
        "--mutants and --suite run whole plans: leave out --guard, --no-faults, --without and --shrink": (
            tries_many and (given.guard or given.no_faults or given.without or given.shrink)
        ),
    }
    for reason, is_mistaken in mistakes.items():
        if is_mistaken:
            parser.error(reason)
    return given


def main() -> None:
    """Runs the seeds of the command line."""
    given = options_of(sys.argv[1:])
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets of texts differs by process otherwise.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], environment)  # noqa: S606
    schemas.prepare()
    began_s, failed = time.perf_counter(), 0
    seeds = range(given.first, given.first + given.seeds)
    chosen: list[_Chosen] = given.mutant or [_Chosen(name) for name in MUTANTS]
    if given.suite:
        _try_suite([mutant.name for mutant in chosen])
        sys.exit(0)
    if given.mutants:
        sys.exit(_find_mutants(seeds, given.hours, chosen, workers=given.workers))
    plan = Plan(
        given.hours,
        with_faults=not given.no_faults,
        mutant=given.mutant[0].name if given.mutant else "",
        is_guarded=given.guard,
        trace=str(Path(given.trace).absolute()) if given.trace else "",
        left_out=given.without,
    )
    if given.shrink:
        sys.exit(_shrink(given.first, plan, given.lines))
    hours = took_s = 0.0
    for outcome, cpu_s in outcomes(seeds, plan, workers=given.workers):
        failed += bool(outcome.failures)
        hours, took_s = hours + outcome.elapsed_s / 3600, took_s + cpu_s
        _print(outcome, cpu_s, given.lines)
    print(
        f"{given.seeds} seeds of {given.hours} h: {failed} failed; {time.perf_counter() - began_s:.0f} s with "
        f"{given.workers} workers; {hours:.1f} simulated hours, {hours * 3600 / took_s:.0f} for each hour of processor time",
        flush=True,
    )
    sys.exit(1 if failed else 0)


def _try_suite(chosen: Sequence[str]) -> None:
    """Runs the suite's tests with each mutant, and prints a table."""
    print("| mutant | found by the suite | test |\n|---|---|---|", flush=True)
    for mutant in chosen:
        text, is_found = suite.verdict(mutant)
        print(f"| {mutant.replace('_', ' ')} | {'yes' if is_found else 'no'} | {text} |", flush=True)


def _find_mutants(seeds: range, hours: float, chosen: Sequence[_Chosen], *, workers: int) -> int:
    """Runs each mutant until a seed finds it. Prints a table, and returns 1 if one that breaks an invariant isn't found."""
    unfound = []
    print("| mutant | found by | seeds | failure |\n|---|---|---|---|", flush=True)
    for mutant, seed in chosen:
        tried = seeds if seed is None else range(seed, seed + 1)
        for outcome, _ in outcomes(tried, Plan(hours, mutant=mutant), workers=workers):
            if outcome.failures:
                judge, at_s, text = outcome.failures[0]
                number = outcome.seed - tried.start + 1
                print(f"| {mutant.replace('_', ' ')} | {judge} | {number} | {at_s:.0f} s: {text[:90]} |", flush=True)
                break
        else:
            unfound.append(mutant)
            print(f"| {mutant.replace('_', ' ')} | not found | {len(tried)} | {HARMLESS.get(mutant, '')} |", flush=True)
    harmful = [mutant for mutant in unfound if mutant not in HARMLESS]
    print(f"{len(chosen) - len(unfound)} of {len(chosen)} found; of those not found {len(harmful)} break an invariant")
    return 1 if harmful else 0


def _shrink(seed: int, plan: Plan, lines: int) -> int:
    """Leaves out ever more faults while the same judge fails. Prints what is left and returns 1, or 0 if the seed passes."""

    def run(left_out: frozenset[int]) -> Outcome:
        outcome, _ = next(outcomes(range(seed, seed + 1), plan._replace(left_out=left_out), workers=1))
        return outcome

    least = run(plan.left_out)
    if not least.failures:
        print(f"seed {seed} passes: nothing to shrink")
        return 0
    judge, left_out = least.failures[0].judge, plan.left_out
    size = len(_numbers(least))
    while size:
        numbers = _numbers(least)
        for begin in range(0, len(numbers), size):
            tried = left_out | frozenset(numbers[begin : begin + size])
            outcome = run(tried)
            if outcome.failures and outcome.failures[0].judge == judge:
                left_out, least = tried, outcome
        print(f"{len(_numbers(least))} faults are left after parts of {size}", flush=True)
        size //= 2
    _print(least, 0.0, lines)
    hours = least.failures[0].at_s / 3600
    print(f"the failure is at {hours:.3f} h; repeat it with --first {seed} --hours {plan.hours} --without", end=" ")
    print(",".join(map(str, sorted(left_out))) or "''")
    return 1


def _numbers(outcome: Outcome) -> list[int]:
    """Numbers of the faults that were made. A fault at a moment has two lines: when it was drawn and when it was made."""
    return sorted({int(fault.split()[0]) for fault in outcome.faults})


def outcomes(seeds: range, plan: Plan, *, workers: int) -> Iterator[tuple[Outcome, float]]:
    """Simulates seeds side by side. Yields outcomes with their processor time in seconds, in the order of the seeds. A caller that
    wants no more ends the seeds that are still running."""
    waiting, running = list(seeds), dict[int, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                started = _start(waiting.pop(0), plan)
                running[started.pid] = started
            # Read before waiting: a child with a long outcome waits until its pipe is read.
            first = next(iter(running.values()))
            with os.fdopen(first.reading, "rb", closefd=False) as pipe:
                content = pipe.read()
            del running[first.pid]
            first.end()
            if not content:
                raise RuntimeError(f"the process of seed {first.seed} ended without an outcome")
            yield pickle.loads(content)  # noqa: S301  # of our own child
    finally:
        for left in running.values():
            os.kill(left.pid, signal.SIGKILL)
            left.end()


class _Running(NamedTuple):
    """The process of a seed."""

    pid: int
    seed: int
    reading: int
    """File descriptor of the pipe that brings its outcome."""
    folder: Path

    def end(self) -> None:
        """Waits for the end of the process and removes its files."""
        os.close(self.reading)
        os.waitpid(self.pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)


def _start(seed: int, plan: Plan) -> _Running:
    folder = Path(tempfile.mkdtemp(prefix="tandem-simulation-", dir=MEMORY if MEMORY.is_dir() else None))
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _child(seed, plan, folder, writing=writing)
    os.close(writing)
    return _Running(pid, seed, reading, folder)


def _child(seed: int, plan: Plan, folder: Path, *, writing: int) -> None:
    """Simulates a seed and sends its outcome. Never returns."""
    code = 1
    try:
        began_s = process_time()
        outcome = simulate(seed, plan, folder)
        content = pickle.dumps((outcome, process_time() - began_s))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(content)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # no cleanup: half of the world's coroutines must never run again


def _print(outcome: Outcome, cpu_s: float, lines: int) -> None:
    print(
        f"seed {outcome.seed:5} {'FAILED' if outcome.failures else 'ok':6} {outcome.digest} {outcome.events:8} events "
        f"{outcome.reports:5} reports {outcome.alerts:4} alerts {outcome.steps:4} steps {outcome.notices:4} warnings "
        f"{len(outcome.faults):3} faults {cpu_s:6.1f} s",
        flush=True,
    )
    if outcome.failures:
        print("\n".join(outcome.faults))
        print("\n".join(outcome.lines[-lines:]))
        print("\n".join(f"seed {outcome.seed}: {failure}" for failure in outcome.failures), flush=True)


if __name__ == "__main__":
    main()
