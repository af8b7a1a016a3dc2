"""Each command of the pages on simulations can be typed as it stands, and each defect has its row."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.simulation.__main__ import options_of
from tests.simulation.mutants import HARMLESS, MUTANTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "simulation.md").read_text()
DEFECTS = (ROOT / "docs" / "reference" / "simulated-defects.md").read_text()
COMMANDS = re.findall(r"^\.venv/bin/python -m tests\.simulation (.*)$", PAGE, re.MULTILINE)
TESTS = re.findall(r"^\| .* \| `([^`:]+)::([a-z0-9_]+)` \|$", DEFECTS, re.MULTILINE)
ROWS = re.findall(r"^\| ([^|]+) \| [^|]+ \|", DEFECTS, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_options_that_exist(command: str) -> None:
    given = options_of(shlex.split(command, comments=True))
    assert given.hours > 0


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) >= 5


def test_each_mutant_has_a_row_of_the_page() -> None:
    names = [row.replace(" ", "_") for row in ROWS]
    assert [name for name in MUTANTS if names.count(name) != 1] == []


def test_each_test_that_finds_a_mutant_exists() -> None:
    assert len(TESTS) >= 50
    assert [
        name for path, name in TESTS if not re.search(rf"\bdef {name}\(", (ROOT / "tests" / path).read_text("utf-8"))
    ] == []


def test_harmless_mutants_have_their_reason_in_the_table() -> None:
    assert [reason for reason in HARMLESS.values() if reason not in DEFECTS] == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--hours", "0"], "--hours: '0' isn't a duration above 0 and up to 24 hours (example: 0.34)"),
        (["--hours", "nan"], "--hours: 'nan' isn't a duration"),
        (["--seeds", "-3"], "--seeds: '-3' isn't a number from 1 on (example: 20)"),
        (["--without", "1,x"], "--without: '1,x' isn't a list of numbers of faults (example: 0,3,4)"),
        (["--mutant", "nothing"], "--mutant: 'nothing' isn't one of "),
        (["--lines", "0"], "--lines: '0' isn't a number from 1 on"),
        (["--trace", "/nowhere/run.1"], "--trace: the folder of '/nowhere/run.1' doesn't exist"),
        (["--trace", "run.1", "--seeds", "2"], "--trace writes the run of one seed"),
        (["--shrink", "--seeds", "3"], "--shrink works on the one seed of --first"),
        (["--mutant", "she_is_not_warned:4"], "a defect with its seed (NAME:SEED), need --mutants"),
        (["--mutants", "--guard"], "leave out --guard"),
    ],
)
def test_rubbish_is_refused_with_the_option(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options_of(options)
    assert reason in capsys.readouterr().err
