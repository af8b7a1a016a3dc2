"""`python -m bench.region`: whether the region on her map holds the wearer, and what a week of views says about his home.

The first part plays approaches of the noise study on real tracks, with a tag that reports each 15 s and each 60 s, and compares each
view of her map with the truth (`bench.region.approaches`). The second part plays weeks of wearers who live at least 2 km from her and
come near her on purpose (`bench.region.lives`). An attacker who holds her phone estimates from up to 20 views where the wearer lives
(`bench.region.attacker`), by the rules of her map, and as if each region were shown exactly for as long as a notice is open.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import fmean, median
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table

from bench import figures
from bench.decision.placement import Play, plays
from bench.figures import Figure, at_least, at_most
from bench.geolife import folder
from bench.region.approaches import KEPT_ARMS, Seen, of_arm, plays_with_phones, see
from bench.region.attacker import Attacker, Habits
from bench.region.lives import APPROACHES, week
from bench.region.watching import Watched, encounters, watch

LIVES, LEARNT = 100, 150
FIRST_LEARNT = 10_000
"""Seed of the first week from which the attacker learns."""
T = TypeVar("T")
U = TypeVar("U")


class Attacked(NamedTuple):
    """What the attacker found in one week."""

    without_m: float
    """Error of his best estimate without views: the middle of where the wearer may live, her own home."""
    rule_m: float
    bare_m: float
    views: int
    meetings: int


def main() -> None:
    """Plays both parts and prints what they bring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one-in", type=int, default=4, help="play only one of N approaches; 0 for none")
    parser.add_argument("--lives", type=int, default=LIVES, help="number of weeks that are attacked; 0 for none")
    parser.add_argument("--visits", type=int, help="number of visits in each week instead of 1 or 2")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    arguments = parser.parse_args()
    console, goals = Console(width=160), list[Figure]()
    if arguments.one_in:
        if not (folder() / "pairs.csv").is_file():
            raise SystemExit(f"GeoLife tracks not found in {folder()}; set TANDEM_SHARED_DATA")
        selected = plays_with_phones(plays(folder()))[:: arguments.one_in]
        seen = [each for pair in _all(_see_all, selected, "approaches", workers=arguments.workers) for each in pair]
        console.print(approach_table(seen))
        goals += approach_goals(seen)
    if arguments.lives:
        visits = (arguments.visits, arguments.visits) if arguments.visits else APPROACHES
        goals += attack_goals(_attacked(arguments.lives, visits, arguments.workers), console)
    console.print(figures.table(goals))


def _see_all(play: Play) -> list[Seen]:
    return [seen for arm in KEPT_ARMS if (seen := see(play, arm)) is not None]


def _watched(seed: int, visits: tuple[int, int]) -> Watched:
    return watch(week(seed, visits))


def _all(work: Callable[[T], U], items: Sequence[T], what: str, *, workers: int) -> list[U]:
    results = []
    with ProcessPoolExecutor(workers) as pool:
        for done, result in enumerate(pool.map(work, items, chunksize=4), 1):
            results.append(result)
            print(f"\r{done} of {len(items)} {what}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


# ── the region and the truth ─────────────────────────────────────────────────────────────────────────────────────────


def approach_table(seen: Sequence[Seen]) -> Table:
    """Views by interval of the tag."""
    table = Table(
        "tag",
        "approaches with a region",
        "views",
        "held, %",
        "radius, m: 10 %",
        "median",
        "90 %",
        "circles",
        "near and shown, %",
    )
    for arm in KEPT_ARMS:
        own = list(of_arm([*seen], arm.name))
        radii = sorted(radius for each in own for radius in each.radii_m)
        near, shown = sum(e.near_views for e in seen if e.arm == arm.name), sum(e.near_shown for e in own)
        if radii:
            table.add_row(
                arm.name,
                str(len(own)),
                f"{len(radii):,}",
                f"{_held_pct(own):.1f}",
                *(f"{radii[int(share * (len(radii) - 1))]:,.0f}" for share in (0.1, 0.5, 0.9)),
                f"{fmean(count for each in own for count in each.circles):.2f}",
                f"{100 * shown / max(1, near):.0f}",
            )
    outcomes: Counter[str] = sum((each.outcomes for each in seen), Counter())
    table.caption = ", ".join(f"{name} {count:,}" for name, count in sorted(outcomes.items()))
    return table


def approach_goals(seen: Sequence[Seen]) -> list[Figure]:
    """The region holds the truth in nine of ten views, and no view puts a near wearer far away."""
    goals = []
    for arm in KEPT_ARMS:
        own = list(of_arm([*seen], arm.name))
        radii = [radius for each in own for radius in each.radii_m]
        goals += [
            at_least(f"{arm.name}: views whose region held him", _held_pct(own), "%", target=90),
            at_least(
                f"{arm.name}: the same, mean over approaches", 100 * fmean(fmean(e.held) for e in own), "%", target=90
            ),
            Figure(f"{arm.name}: radius, median", median(radii), "m"),
        ]
    goals.append(
        at_most("views that put him at 600 m or more while he was nearer", sum(e.said_far for e in seen), "", target=0)
    )
    return goals


def _held_pct(seen: Sequence[Seen]) -> float:
    return 100 * fmean(held for each in seen for held in each.held)


# ── the attacker ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _attacked(lives: int, visits: tuple[int, int], workers: int) -> list[Attacked]:
    play = partial(_watched, visits=visits)
    learnt_from = range(FIRST_LEARNT, FIRST_LEARNT + LEARNT)
    watched = _all(play, [*learnt_from, *range(lives)], "weeks", workers=workers)
    by_rule, bare = Habits(), Habits()
    for own in watched[:LEARNT]:
        by_rule.learn(own.home, own.shown)
        bare.learn(own.home, own.bare)
    rule_attacker, bare_attacker = Attacker(by_rule), Attacker(bare)
    return [
        Attacked(
            without_m=abs(own.home),
            rule_m=rule_attacker.error_m(own.home, own.shown),
            bare_m=bare_attacker.error_m(own.home, own.bare),
            views=len(own.shown),
            meetings=len(encounters(own.shown)),
        )
        for own in watched[LEARNT:]
    ]


def attack_goals(weeks: Sequence[Attacked], console: Console) -> list[Figure]:
    """The attacker learns little by the rules of her map."""
    table = Table("", "error, m: mean", "median", "10th percentile")
    for name, errors in (
        ("without views", [each.without_m for each in weeks]),
        ("by the rules of her map", [each.rule_m for each in weeks]),
        ("each region exactly, while a notice is open", [each.bare_m for each in weeks]),
    ):
        table.add_row(
            name, f"{fmean(errors):,.0f}", f"{median(errors):,.0f}", f"{sorted(errors)[len(errors) // 10]:,.0f}"
        )
    console.print(table)
    without_m = fmean(each.without_m for each in weeks)
    return [
        at_least(
            "error of the attacker, of that without views", fmean(e.rule_m for e in weeks) / without_m, "x", target=0.8
        ),
        Figure("the same if each region were shown exactly", fmean(e.bare_m for e in weeks) / without_m, "x"),
        Figure("views that the map offers in a week, median", median(each.views for each in weeks), ""),
        Figure("encounters on the map in a week, mean", fmean(each.meetings for each in weeks), ""),
        Figure("weeks without a view", sum(not each.views for each in weeks), ""),
    ]


if __name__ == "__main__":
    main()
