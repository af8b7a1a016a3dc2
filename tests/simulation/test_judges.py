"""The judges bite: each finds a defect that is put into the services. `make mutants` does the same for all known defects."""

from __future__ import annotations

import re

import pytest

from tests.simulation.command_line import simulate
from tests.simulation.mutants import HARMLESS, MUTANTS, SEVERAL_PROCESSES

FIRST, SEEDS, HOURS = "0", "8", "0.34"
FOUND_BY = {
    "ingest_gives_all_batches_of_a_second_one_message_id": "I1",
    "an_alert_in_ten_is_not_published": "I2",
    "deadlines_never_pass": "I3",
    "a_leg_makes_an_assignment_for_each_try": "I4",
    "an_evaluator_skips_an_entry_after_a_checkpoint": "I5",
    "desks_get_no_steps": "I6",
    "the_registry_publishes_no_cases": "I7",
    "the_ledger_drops_disclosures": "I8",
    "late_reports_change_no_account": "I9",
    "a_jump_clears_a_ring": "I10",
    "live_reports_wait_behind_kept_ones": "I11",
    "she_is_not_warned": "warned",
}
"""A defect for each invariant, and the invariant that it breaks first."""
_ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| \d+ \| ", re.MULTILINE)


@pytest.mark.timeout(900)
def test_each_judge_finds_a_defect() -> None:
    mutants = [option for mutant in FOUND_BY for option in ("--mutant", mutant)]
    done = simulate("--mutants", *mutants, "--first", FIRST, "--seeds", SEEDS, "--hours", HOURS, "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name.replace(" ", "_"): judge for name, judge in _ROW.findall(done.stdout)} == FOUND_BY


def test_each_mutant_says_what_is_wrong() -> None:
    assert len(MUTANTS) >= 40
    assert all(put.__doc__ for put in MUTANTS.values())
    assert HARMLESS.keys() | SEVERAL_PROCESSES <= MUTANTS.keys()
