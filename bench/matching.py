"""`python -m bench.matching [--json]`: quality of finding the records of one person.

It links Febrl 4 and 3 without the ID number, with one threshold that needs no labels, and compares with PyPI `recordlinkage` and
`splink` on the same data in the same run. It also ranks Latin spellings of Korean names. Exit code 1 where a target isn't met.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.linkage import febrl
from services.registry.matching import names

DATA = "TANDEM_SHARED_DATA"
"""Environment variable of the folder that holds korean_names/korean_names_1000.json; default: ../shared/data."""
F1_TARGET = 0.99
RANK_TARGET = 0.92
_PACKAGES = ("rapidfuzz", "recordlinkage", "splink")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. Where `against` names a peer, `value` is the ratio to it."""

    name: str
    value: float
    unit: str
    target: float | None = None
    met: bool | None = None
    against: str | None = None


def main() -> int:
    """Runs the benchmark and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.matching", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    figures = [*febrl_figures(), *korean_figures()]
    if arguments.json:
        report = {"machine": _machine(), "versions": _versions(), "figures": [asdict(figure) for figure in figures]}
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _print_table(figures)
    return int(any(figure.met is False for figure in figures))


# ── Febrl ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def febrl_figures() -> Iterable[Figure]:
    """F1, precision and recall of Tandem and of the peers on both sets, and the ratios of F1."""
    try:
        datasets = febrl.load()
    except ImportError as missing:
        _say(f"Febrl is left out: {missing.name} is missing; install it with: pip install -e '.[bench]'")
        return
    peers: dict[str, Callable[[febrl.Dataset], list[febrl.Pair]]] = {
        "recordlinkage": febrl.link_with_recordlinkage,
        "splink": febrl.link_with_splink,
    }
    for dataset in datasets:
        ours, took_s = _timed(febrl.link, dataset)
        yield Figure(name=f"{dataset.name}_f1", value=ours.f1, unit="F1", target=F1_TARGET, met=ours.f1 >= F1_TARGET)
        yield from _details(dataset.name, ours, took_s)
        for peer, link in peers.items():
            try:
                theirs, took_s = _timed(link, dataset)
            except ImportError as missing:
                _say(f"{peer} is left out: {missing.name} is missing; install it with: pip install -e '.[bench]'")
                continue
            yield Figure(f"{dataset.name}_f1_of_{peer}", theirs.f1, "F1")
            yield from _details(f"{dataset.name}_{peer}", theirs, took_s)
            named = f"{peer} {importlib.metadata.version(peer)}"
            yield Figure(f"{dataset.name}_f1_ratio", ours.f1 / theirs.f1, "x", against=named)


def _timed(link: Callable[[febrl.Dataset], list[febrl.Pair]], dataset: febrl.Dataset) -> tuple[febrl.Score, float]:
    began = time.perf_counter()
    links = link(dataset)
    return febrl.score(links, dataset.truth), time.perf_counter() - began


def _details(name: str, score: febrl.Score, took_s: float) -> Iterable[Figure]:
    yield Figure(f"{name}_precision", score.precision, "share")
    yield Figure(f"{name}_recall", score.recall, "share")
    yield Figure(f"{name}_took", took_s, "s")


# ── Korean names ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ranking:
    """Number of rows, and number of rows whose first-ranked candidate is right."""

    rows: int
    right: int

    @property
    def share(self) -> float:
        """Share of the rows with a right first candidate."""
        return self.right / self.rows if self.rows else 0.0


def korean_names_file() -> Path:
    """Expected path of the list of names."""
    folder = os.environ.get(DATA) or Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(folder) / "korean_names" / "korean_names_1000.json"


def korean_ranking(path: Path) -> dict[str, Ranking]:
    """Rankings of the whole list, of its `ambiguous` part and of the rest (`plain`).

    For each name in Hangul, all Latin spellings of the list are ranked. A result is right where only spellings that the list gives for
    that name share the first rank. A row is ambiguous where its spelt surname is also a spelling of another surname.
    """
    rows = [(load["fullNameHangul"], load["fullNameRomanized"]) for load in json.loads(path.read_text("utf-8"))]
    spellings = defaultdict(set)
    for name, latin in rows:
        spellings[name].add(latin)
    candidates = sorted({latin for _, latin in rows})
    is_right = {}
    for name, right in spellings.items():
        ranked = names.rank(name, candidates)
        is_right[name] = {latin for latin, similarity in ranked if similarity == ranked[0][1]} <= right
    counts: dict[str, list[bool]] = {"all": [], "ambiguous": [], "plain": []}
    for name, latin in rows:
        meant = names.BY_SPELLING.get(names.words(latin)[0], ())
        part = "ambiguous" if len(meant) > 1 else "plain"
        for counted in ("all", part):
            counts[counted].append(is_right[name])
    return {part: Ranking(len(results), sum(results)) for part, results in counts.items()}


def korean_figures() -> Iterable[Figure]:
    """Shares of the names in Hangul whose Latin spelling is ranked first."""
    path = korean_names_file()
    if not path.exists():
        _say(f"Korean names are left out: {path} is missing; {DATA} names the folder that holds korean_names/")
        return
    rankings = korean_ranking(path)
    whole = rankings["all"].share
    yield Figure(name="korean_rank1", value=whole, unit="share", target=RANK_TARGET, met=whole >= RANK_TARGET)
    for part in ("ambiguous", "plain"):
        yield Figure(f"korean_rank1_{part}", rankings[part].share, "share")
    for part, ranking in rankings.items():
        yield Figure(f"korean_rows_{part}", ranking.rows, "rows")


# ── output ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _print_table(figures: Iterable[Figure]) -> None:
    print(f"{'figure':32} {'value':>9} unit   target")
    for figure in figures:
        value = f"{figure.value:.0f}" if figure.unit == "rows" else f"{figure.value:.4f}"
        target = "" if figure.target is None else f"at least {figure.target:g}: {'met' if figure.met else 'NOT MET'}"
        print(
            f"{figure.name:32} {value:>9} {figure.unit:6} {target}{f'against {figure.against}' if figure.against else ''}"
        )


def _machine() -> dict[str, Any]:
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
