"""Shrinking leaves only the faults that a failure needs."""

from __future__ import annotations

import re

import pytest

from tests.simulation.command_line import simulate

MUTANT = ("--mutant", "an_evaluator_restores_no_cases")
SEED, HOURS = "0", "0.17"
_REPEAT = re.compile(r"repeat it with --first \d+ --hours \S+ --without (\S+)$", re.MULTILINE)
_FAILURE = re.compile(rf"^seed {SEED}: (I\d+) at ", re.MULTILINE)
_LEFT = re.compile(r"^(\d+) faults are left", re.MULTILINE)


@pytest.mark.timeout(900)
def test_a_failure_shrinks_to_the_fault_that_it_needs() -> None:
    shrunk = simulate("--shrink", "--first", SEED, "--hours", HOURS, *MUTANT)
    assert shrunk.returncode == 1, shrunk.stdout + shrunk.stderr
    assert _LEFT.findall(shrunk.stdout)[-1] == "1", shrunk.stdout
    repeated = simulate("--first", SEED, "--hours", HOURS, *MUTANT, "--without", _REPEAT.findall(shrunk.stdout)[0])
    assert repeated.returncode == 1, repeated.stdout + repeated.stderr
    assert _FAILURE.findall(repeated.stdout) == _FAILURE.findall(shrunk.stdout)


@pytest.mark.timeout(900)
def test_a_seed_without_a_failure_has_nothing_to_shrink() -> None:
    done = simulate("--shrink", "--first", SEED, "--hours", "0.02")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to shrink" in done.stdout
