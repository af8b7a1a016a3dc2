"""The judges bite: a defect that is put into the services is found. `make mutants` does the same for all known defects."""

from __future__ import annotations

import pytest

from tests.simulation.command_line import simulate
from tests.simulation.mutants import HARMLESS, MUTANTS


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("mutant", "judge"),
    [
        ("ingest_gives_all_batches_of_a_second_one_message_id", "I1"),
        ("the_registry_publishes_no_cases", "I7"),
    ],
)
def test_a_defect_is_found(mutant: str, judge: str) -> None:
    done = simulate("--mutant", mutant, "--hours", "0.34")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"seed 0: {judge} at " in done.stdout


def test_each_mutant_says_what_is_wrong() -> None:
    assert len(MUTANTS) >= 40
    assert all(put.__doc__ for put in MUTANTS.values())
    assert HARMLESS.keys() <= MUTANTS.keys()
