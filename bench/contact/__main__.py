"""`python -m bench.contact`: what first contacts tell a wearer about her, and what they spare.

The first part plays months of wearers who live at least 2 km from a home that nobody names to them (`bench.contact.lives`). An attacker
who sees all contacts and his own track estimates where she lives (`bench.contact.attacker`), by the rule and by the naive rule, which
contacts at each NOTIFY. Places that the order names are excepted. The second part plays approaches in which turning back is possible
(`bench.contact.turning`), with wearers who obey with a probability.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import fmean, median
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table

from bench import figures
from bench.contact import turning
from bench.contact.attacker import Attacker
from bench.contact.lives import DAYS, month
from bench.contact.play import perform
from bench.contact.turning import Approach
from bench.figures import Figure, at_least, at_most

LIVES, APPROACHES = 100, 300
OBEYING = (0.0, 0.5, 0.9)
NEAR_M = 1_000.0
T = TypeVar("T")


class Attacked(NamedTuple):
    """What the attacker found in one month."""

    without_m: float
    """Error of his best estimate of her home without contacts."""
    rule_m: float
    naive_m: float
    rule_near: float
    """Probability that he gives to places within NEAR_M of her home, by the rule."""
    naive_near: float
    contacts: int
    caused: int
    """Contacts away from the named place that an approach to her caused."""
    naive_contacts: int
    """Contacts of the naive rule away from the named place."""


def attacked(seed: int) -> Attacked:
    """Plays a month and attacks it."""
    life = month(seed)
    played, attacker = perform(life), Attacker(life)
    rule, naive = attacker.kept(), attacker.naive()
    return Attacked(
        without_m=attacker.error_without_m(),
        rule_m=attacker.error_m(played.contacts_s, rule),
        naive_m=attacker.error_m(played.notified_s, naive),
        rule_near=attacker.share_near(played.contacts_s, rule, within_m=NEAR_M),
        naive_near=attacker.share_near(played.notified_s, naive, within_m=NEAR_M),
        contacts=len(played.contacts_s),
        caused=len(played.caused_s),
        naive_contacts=len(played.notified_s),
    )


def main() -> None:
    """Plays both parts and prints what they bring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=LIVES, help="number of months that are attacked")
    parser.add_argument("--approaches", type=int, default=APPROACHES, help="number of approaches")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    arguments = parser.parse_args()
    console, goals = Console(width=160), list[Figure]()
    if arguments.approaches:
        approaches = _all(turning.approach, arguments.approaches, "approaches", workers=arguments.workers)
        console.print(turning_table(approaches))
        goals += turning_goals(approaches)
    if arguments.lives:
        months = _all(attacked, arguments.lives, "months", workers=arguments.workers)
        console.print(attack_table(months))
        goals += attack_goals(months)
    console.print(figures.table(goals))


def _all(play: Callable[[int], T], count: int, what: str, *, workers: int) -> list[T]:
    results = []
    with ProcessPoolExecutor(workers) as pool:
        for done, result in enumerate(pool.map(play, range(count)), 1):
            results.append(result)
            print(f"\r{done} of {count} {what}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def attack_table(months: Sequence[Attacked]) -> Table:
    """Errors of the attacker, by rule."""
    table = Table("", "median error, m", "10th percentile, m", f"probability within {NEAR_M:g} m, median", "greatest")
    for name, errors, shares in (
        ("without contacts", [each.without_m for each in months], []),
        ("by the rule", [each.rule_m for each in months], [each.rule_near for each in months]),
        ("at each NOTIFY", [each.naive_m for each in months], [each.naive_near for each in months]),
    ):
        near = (f"{median(shares):.3f}", f"{max(shares):.3f}") if shares else ("", "")
        table.add_row(name, f"{median(errors):,.0f}", f"{sorted(errors)[len(errors) // 10]:,.0f}", *near)
    return table


def attack_goals(months: Sequence[Attacked]) -> list[Figure]:
    """The attacker learns nearly nothing by the rule."""
    ratios = [each.rule_m / each.without_m for each in months]
    return [
        at_least("error of the attacker, of that without contacts, median", median(ratios), "x", target=0.8),
        at_least("error of the attacker, median", median(each.rule_m for each in months), "m", target=500),
        Figure(
            "the same at each NOTIFY, of that without contacts",
            median(each.naive_m / each.without_m for each in months),
            "x",
        ),
        Figure("months whose error is below 0.8", 100 * fmean(ratio < 0.8 for ratio in ratios), "%"),
        Figure("contacts a wearer and day", fmean(each.contacts for each in months) / DAYS, ""),
        Figure("of them caused away from the named place, a month", fmean(each.caused for each in months), ""),
        Figure("at each NOTIFY there, a month", fmean(each.naive_contacts for each in months), ""),
    ]


def for_nothing(approaches: Sequence[Approach], p: float) -> int:
    """Dispatch moments of approaches that are no breach, if the wearer obeys with a probability."""
    return sum(outcome.dispatches for outcome in (each.with_p(p) for each in approaches) if not outcome.is_breach)


def turning_table(approaches: Sequence[Approach]) -> Table:
    """Dispatches for nothing and missed breaches, by the probability of obeying."""
    table = Table(
        "obeys with", "breaches", "missed", "dispatches for nothing", "of near misses", "of turned breaches", "contacts"
    )
    for p in OBEYING:
        outcomes = [each.with_p(p) for each in approaches]
        near = [each for each in approaches if not each.ignored.is_breach]
        table.add_row(
            f"{p:g}",
            str(sum(outcome.is_breach for outcome in outcomes)),
            str(missed(approaches, p)),
            str(for_nothing(approaches, p)),
            str(for_nothing(near, p)),
            str(for_nothing(approaches, p) - for_nothing(near, p)),
            str(sum(len(outcome.messages_ms) for outcome in outcomes)),
        )
    return table


def missed(approaches: Sequence[Approach], p: float) -> int:
    """Breaches without a response."""
    return sum(each.with_p(p).is_breach and not each.with_p(p).responds_ms for each in approaches)


def turning_goals(approaches: Sequence[Approach]) -> list[Figure]:
    """Half of the dispatches for nothing are spared at 0.5, and the response falls due as ever."""
    near = [each for each in approaches if not each.ignored.is_breach]
    changed = sum(not each.same_instants for each in approaches)
    return [
        at_most(
            "dispatches for nothing at 0.5, of those at 0, of wearers who wouldn't have breached",
            for_nothing(near, 0.5) / max(1, for_nothing(near, 0)),
            "x",
            target=0.5,
        ),
        Figure(
            "the same with would-be breaches that turned too late to spare the dispatch",
            for_nothing(approaches, 0.5) / max(1, for_nothing(approaches, 0)),
            "x",
        ),
        at_most("plays whose response falls due at another instant", changed, "", target=0),
        at_most("missed breaches more than without contacts on the same tracks", changed, "", target=0),
    ]


if __name__ == "__main__":
    main()
