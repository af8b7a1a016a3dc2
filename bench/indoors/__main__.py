"""`python -m bench.indoors`: what home units and beacons save where satellites are lost indoors, and what they cost in approaches.

The weeks are those of `bench.burden`: the wearer lives 300, 500 or 900 m from her and violates nothing, so each response is for
nothing. Four times a day his tag loses the satellites at home or at work for 10 to 60 minutes (`bench.indoors.world`). The approaches
are of wearers who rest at home without satellites and then walk to her door (`bench.indoors.approaches`).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import median

from rich.console import Console
from rich.table import Table

from bench import figures
from bench.burden.counts import Counts
from bench.burden.lives import HOMES_M, life
from bench.figures import Figure
from bench.indoors.approaches import APPROACH_ARMS, Approach, approaches
from bench.indoors.week import INDOOR_ARMS, IndoorArm, perform
from bench.indoors.world import IndoorWorld

NEAR = "UNKNOWN_NEAR"
CARRIED = APPROACH_ARMS[-1].name


def main() -> None:
    """Plays the weeks and the approaches, and prints what they bring."""
    arguments = _parser().parse_args()
    lives = [(home_m, seed) for seed in range(arguments.seeds) for home_m in HOMES_M]
    with ProcessPoolExecutor(arguments.workers) as pool:
        weeks = [week for played in pool.map(partial(_play, arms=INDOOR_ARMS), lives) for week in played]
    made = [*approaches(arguments.approaches)]
    console = Console(width=160)
    console.print(weeks_table(weeks))
    console.print(approaches_table(made))
    console.print(figures.table(goals(weeks, made)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="number of lives of each home")
    parser.add_argument("--approaches", type=int, default=20, help="number of approaches from each home")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    return parser


def _play(key: tuple[int, int], *, arms: Sequence[IndoorArm]) -> list[Counts]:
    """Counts of one life with each arm and each protected side."""
    lived = life(*key)
    worlds = {has_losses: IndoorWorld(lived, has_losses=has_losses) for has_losses in (False, True)}
    return [perform(worlds[arm.has_losses], arm, is_place=is_place) for is_place in (False, True) for arm in arms]


def responses_a_day(weeks: Iterable[Counts]) -> float:
    """Dispatch moments a day by an unseen wearer."""
    weeks = [*weeks]
    return sum(moment.kind == NEAR for week in weeks for moment in week.moments) / sum(week.days for week in weeks)


def notices_a_day(weeks: Iterable[Counts], kind: str = NEAR) -> float:
    """Alerts a day of a kind that demand NOTIFY."""
    weeks = [*weeks]
    return sum(week.notices[kind] for week in weeks) / sum(week.days for week in weeks)


def weeks_table(weeks: Sequence[Counts]) -> Table:
    """Responses and notices a day by arm and distance of the home."""
    groups: dict[tuple[str, int], list[Counts]] = defaultdict(list)
    for week in weeks:
        groups[week.arm, week.home_m].append(week)
    table = Table(
        "arm", "home, m", "UNKNOWN_NEAR responses a day", "UNKNOWN_NEAR notices a day", "SILENT notices a day"
    )
    for (arm, home_m), of_arm in groups.items():
        shown = (responses_a_day(of_arm), notices_a_day(of_arm), notices_a_day(of_arm, "SILENT"))
        table.add_row(arm, str(home_m), *(f"{value:.2f}" for value in shown))
    return table


def approaches_table(made: Sequence[Approach]) -> Table:
    """Responses to approaches by arm and distance of the home: in time, late or never, and when they came."""
    table = Table(
        "approach", "home, m", "in time", "late", "missed", "response after leaving, s (median)", "arrival, s"
    )
    for arm in APPROACH_ARMS:
        for home_m in HOMES_M:
            mine = [each for each in made if (each.arm, each.home_m) == (arm.name, home_m)]
            after_s = [each.respond_after_s for each in mine if each.respond_after_s is not None]
            in_time, missed = sum(each.is_in_time for each in mine), len(mine) - len(after_s)
            counts = (in_time, len(after_s) - in_time, missed)
            median_s = f"{median(after_s):.0f}" if after_s else "none"
            table.add_row(arm.name, str(home_m), *map(str, counts), median_s, f"{mine[0].arrives_after_s:.0f}")
    return table


def goals(weeks: Sequence[Counts], made: Sequence[Approach]) -> list[Figure]:
    """The goals: units save responses for nothing, and no approach is missed; a carried beacon is told without a goal."""
    without = [week for week in weeks if week.arm == "no unit"]
    with_units = [week for week in weeks if week.arm == INDOOR_ARMS[-1].name]
    share = responses_a_day(with_units) / max(responses_a_day(without), 1e-9)
    carried = [each for each in made if each.arm == CARRIED]
    others = [each for each in made if each.arm != CARRIED]
    return [
        figures.at_most("UNKNOWN_NEAR responses with units, share of those without", share, "x", target=0.3),
        figures.at_most("approaches without a response, no beacon carried along", _missed(others), "of all", target=0),
        Figure("approaches without a response, a beacon carried along", _missed(carried), f"of {len(carried)}"),
    ]


def _missed(made: Sequence[Approach]) -> int:
    return sum(each.respond_after_s is None for each in made)


if __name__ == "__main__":
    main()
