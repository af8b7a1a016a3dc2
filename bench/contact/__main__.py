"""`python -m bench.contact`: what first contacts spare.

It plays approaches to a named home in which turning back is possible (`bench.contact.turning`), with wearers who obey with a
probability.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from rich.console import Console
from rich.table import Table

from bench import figures
from bench.contact import turning
from bench.contact.turning import Approach
from bench.figures import Figure, at_most

APPROACHES = 300
OBEYING = (0.0, 0.5, 0.9)


def main() -> None:
    """Plays the approaches and prints what contacts spare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--approaches", type=int, default=APPROACHES, help="number of approaches")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    arguments = parser.parse_args()
    console = Console(width=160)
    with ProcessPoolExecutor(arguments.workers) as pool:
        approaches = list(pool.map(turning.approach, range(arguments.approaches)))
    console.print(turning_table(approaches))
    console.print(figures.table(turning_goals(approaches)))


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
