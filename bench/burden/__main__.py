"""`python -m bench.burden`: what the decision costs people where nobody violates anything, by weeks of lives near her.

The wearer lives 300, 500 or 900 m from her home and never comes within 150 m of her (`bench.burden.lives`), so each dispatch is for
nothing. The tag reports at a constant interval, or obeys the fold's requests (`bench.decision.arms`); all arms meet the same noise
(`bench.burden.world`). Each week is played for an order that protects the person with her phone, and for one that protects her home.
Alerts are counted as they reach people: dispatch moments, notices, pushes to her; and what the tag has to do for it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console

from bench import figures
from bench.burden import tables
from bench.burden.counts import Counts, from_json, to_json
from bench.burden.lives import HOMES_M, SEEDS, life
from bench.burden.week import perform
from bench.burden.world import LifeWorld
from bench.decision.arms import ARMS


def main() -> None:
    """Plays the weeks and prints what they bring."""
    arguments = _parser().parse_args()
    before = [_kept(path) for path in (arguments.before, *arguments.show) if path]
    lives = [(home_m, seed) for seed in range(arguments.seeds) for home_m in arguments.homes]
    counts = [] if arguments.show else _played(lives, arguments)
    counts += [week for kept in before[arguments.before is not None :] for week in kept]
    if arguments.json:
        arguments.json.write_text(json.dumps([to_json(week) for week in counts]), encoding="utf-8")
    console = Console(width=250)
    for table in tables.tables(tables.groups(counts)):
        console.print(table)
        console.print()
    console.print(figures.table(tables.goals(counts, before[0] if arguments.before else None)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--homes", type=int, nargs="+", choices=HOMES_M, default=HOMES_M, help="distances of homes, m")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="number of lives of each home")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=(tables.BASE, tables.ASKED), help="tags to play")
    parser.add_argument(
        "--protects",
        nargs="+",
        choices=("person", "place"),
        default=("person", "place"),
        help="what the order protects",
    )
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument("--json", type=Path, help="file for the counts of all weeks")
    parser.add_argument(
        "--before", type=Path, help="file of --json of an earlier version of the fold, with which the goals compare"
    )
    parser.add_argument("--show", type=Path, nargs="+", default=[], help="print the counts of files instead of playing")
    return parser


def _played(lives: Sequence[tuple[int, int]], arguments: argparse.Namespace) -> list[Counts]:
    play = partial(_play, arms=arguments.arms, protects=arguments.protects)
    counts: list[Counts] = []
    with ProcessPoolExecutor(arguments.workers) as pool:
        for done, weeks in enumerate(pool.map(play, lives), 1):
            counts += weeks
            print(f"\r{done} of {len(lives)} lives", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return counts


def _play(key: tuple[int, int], *, arms: Sequence[str], protects: Sequence[str]) -> list[Counts]:
    """Counts of one life with each arm and each protected side, all with the same noise."""
    world = LifeWorld(life(*key))
    return [perform(world, ARMS[arm], is_place=side == "place") for side in protects for arm in arms]


def _kept(path: Path) -> list[Counts]:
    return [from_json(values) for values in json.loads(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    main()
