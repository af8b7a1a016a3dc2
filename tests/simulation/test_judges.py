"""The judges bite: each finds a defect that is put into the services. `make mutants` does the same for all known defects."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.simulation.command_line import simulate
from tests.simulation.mutants import HARMLESS, MUTANTS, SEVERAL_PROCESSES

HOURS = "0.34"


class Finding(NamedTuple):
    """How a defect is found."""

    mutant: str
    seed: int
    judge: str
    """The invariant that it breaks first in this seed."""


FINDINGS = (
    Finding("the_last_report_of_a_batch_is_lost", 0, "I1"),
    Finding("an_evaluator_folds_no_equipment_events", 0, "I2"),
    Finding("deadlines_never_pass", 0, "I3"),
    Finding("a_leg_makes_an_assignment_for_each_try", 0, "I4"),
    Finding("an_evaluator_folds_no_later_snapshots_of_a_case", 0, "I5"),
    Finding("a_leg_does_not_read_the_other_legs", 0, "I6"),
    Finding("the_registry_publishes_no_cases", 0, "I7"),
    Finding("the_ledger_drops_disclosures", 0, "I8"),
    Finding("late_reports_change_no_account", 3, "I9"),
    Finding("a_jump_clears_a_ring", 1, "I10"),
    Finding("a_message_in_twenty_is_forgotten", 0, "I11"),
    Finding("commands_do_not_reach_devices", 0, "warned"),
)
_ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| \d+ \| ", re.MULTILINE)


@pytest.mark.timeout(900)
def test_each_judge_finds_a_defect() -> None:
    options = [option for finding in FINDINGS for option in ("--mutant", f"{finding.mutant}:{finding.seed}")]
    done = simulate("--mutants", *options, "--hours", HOURS, "--workers", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name.replace(" ", "_"): judge for name, judge in _ROW.findall(done.stdout)}
    assert found == {finding.mutant: finding.judge for finding in FINDINGS}


def test_each_mutant_says_what_is_wrong() -> None:
    assert len(MUTANTS) >= 40
    assert all(put.__doc__ for put in MUTANTS.values())
    assert HARMLESS.keys() | SEVERAL_PROCESSES <= MUTANTS.keys()
