"""`python -m bench.decision_quality`: missed breaches and dispatches for nothing of the fold, with tags that obey its requests.

Real tracks are the truth (`bench.decision.placement`), and noisy reports are derived from them (`bench.decision.noise`). The fold
decides, and the tag obeys what it requests (`bench.decision.play`, `bench.decision.arms`). The truth judges
(`bench.decision.judge`). Every dispatch counts, UNKNOWN_NEAR included. All arms meet the same noise, so they are compared in pairs
with the tag that reports each 60 s, and each with a plain threshold that misses no more. Intervals are 95 % bootstrap intervals
over wearers. Misses are few, so `--draws` sums several draws of the noise and also prints each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.decision import tables
from bench.decision.arms import ARMS, Arm
from bench.decision.judge import judge_all
from bench.decision.judged import Judged, from_json, merged, to_json
from bench.decision.noise import Gaps
from bench.decision.placement import Play, plays
from bench.geolife import folder

USUAL_ARMS = ("15 s", "60 s", "asked")
_CHUNK = 10
"""Number of plays that one process judges at a time."""


def main() -> None:
    """Runs the study, prints the figures, and writes the files that are requested."""
    arguments = _parser().parse_args()
    if not (folder() / "pairs.csv").is_file():
        raise SystemExit(f"GeoLife tracks not found in {folder()}; set TANDEM_SHARED_DATA")
    selected = list(islice(plays(folder()), 0, None, arguments.one_in))
    if arguments.but_one_in:
        del selected[:: arguments.but_one_in]
    about = {"plays": [play.name for play in selected], "draws": arguments.draws}
    others = [each for path in arguments.against for each in _kept(path, about)]
    own = _played(selected, arguments)
    if arguments.keep:
        arguments.keep.write_text(json.dumps({"about": about, "judged": [*map(to_json, own)]}), encoding="utf-8")
    judged = [*own, *others]
    if arguments.faults:
        lines = [json.dumps(asdict(fault)) for group in judged for fault in group.faults]
        arguments.faults.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    scores = tables.scores(judged)
    if arguments.plot:
        from bench.decision import plot  # matplotlib is only in requirements-bench.lock

        plot.draw(next(iter(scores.values())), arguments.plot)
    if arguments.json:
        print(json.dumps(tables.as_json(scores), indent=1))
        return
    console = Console(width=200)
    for table in tables.tables(scores, judged):
        console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one-in", type=int, default=1, help="play only one of N plays, for a quick overview")
    parser.add_argument("--but-one-in", type=int, help="leave out one of N plays; the decision was tuned on one in 4")
    parser.add_argument(
        "--draws", type=int, default=1, help="number of draws of the noise; the first was fixed beforehand"
    )
    parser.add_argument(
        "--arms", nargs="*", choices=ARMS, default=USUAL_ARMS, help="tags to play; none to show only those of --against"
    )
    parser.add_argument("--gaps", nargs="+", choices=[gaps.name for gaps in Gaps], default=[gaps.name for gaps in Gaps])
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--keep", type=Path, help="file for the counts, to be shown beside another run by --against")
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        help="files of --keep, such as those of another version of the fold; the name of each file is added to its arms",
    )
    parser.add_argument(
        "--faults", type=Path, help="file for each miss and each dispatch for nothing, one JSON object a line"
    )
    parser.add_argument("--plot", type=Path, help="file for the plot, as SVG (needs matplotlib)")
    return parser


def _played(selected: list[Play], arguments: argparse.Namespace) -> list[Judged]:
    """Judgements of all plays, by group."""
    arms = [ARMS[name] for name in arguments.arms]
    regimes = [Gaps[name] for name in arguments.gaps]
    judge_chunk = partial(_judge_chunk, arms=arms, draws=range(1, arguments.draws + 1), regimes=regimes)
    chunks = [selected[i : i + _CHUNK] for i in range(0, len(selected), _CHUNK)] if arms else []
    judged: list[Judged] = []
    with ProcessPoolExecutor(arguments.workers) as pool:
        for done, groups in enumerate(pool.map(judge_chunk, chunks), 1):
            judged += groups
            print(f"\r{min(done * _CHUNK, len(selected))} of {len(selected)} plays", end="", file=sys.stderr)
    print(file=sys.stderr)
    return merged(judged)


def _judge_chunk(chunk: list[Play], *, arms: Sequence[Arm], draws: range, regimes: Sequence[Gaps]) -> list[Judged]:
    return merged(judged for play in chunk for judged in judge_all(play, arms, draws=draws, regimes=regimes))


def _kept(path: Path, about: dict[str, Any]) -> Iterator[Judged]:
    """Judgements of a file, with the file's name after that of the arm."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["about"] != about:
        raise SystemExit(
            f"{path} counts other plays or draws; run both with the same --one-in, --but-one-in and --draws"
        )
    for values in kept["judged"]:
        judged = from_json(values)
        judged.arm = f"{judged.arm} ({path.stem})"
        yield judged


if __name__ == "__main__":
    main()
