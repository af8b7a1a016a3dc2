"""A fixed set of simulated nights passes, and a seed does the same each time it is run."""

from __future__ import annotations

import re

import pytest

from tests.simulation.command_line import simulate

HOURS = 0.34
SEEDS = 6
_LINE = re.compile(r"^seed +(\d+) (ok|FAILED) +([0-9a-f]{32}) ", re.MULTILINE)


@pytest.mark.timeout(1_800)
def test_the_fixed_seeds_pass() -> None:
    done = simulate("--seeds", str(SEEDS), "--hours", str(HOURS), "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [match[2] for match in _LINE.finditer(done.stdout)] == ["ok"] * SEEDS


@pytest.mark.timeout(900)
def test_a_seed_gives_the_same_digest_each_time() -> None:
    first, second = (simulate("--first", "3", "--hours", "0.12").stdout for _ in range(2))
    digests = [match[3] for output in (first, second) for match in _LINE.finditer(output)]
    assert len(digests) == 2
    assert digests[0] == digests[1]


@pytest.mark.timeout(900)
def test_a_simulated_world_never_meets_the_machine() -> None:
    done = simulate("--first", "5", "--hours", "0.1", "--guard")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_another_seed_gives_another_digest() -> None:
    done = simulate("--seeds", "2", "--hours", "0.05", "--no-faults")
    digests = {match[3] for match in _LINE.finditer(done.stdout)}
    assert len(digests) == 2
