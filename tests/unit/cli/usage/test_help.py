"""The help of each command at 80 columns: whole lines, plain types, one name for one option."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import pytest
import typer
from typer.core import TyperGroup, TyperOption

from services.cli import __main__ as command_line
from tests.support.cli.command_line import run

HEADINGS = ("Run a mesh on this machine", "Inspect", "Decide", "Prove", "Operate", "Exercise")


def _commands() -> Iterator[tuple[str, ...]]:
    yield ()
    for name, command in _root().commands.items():
        yield (name,)
        if isinstance(command, TyperGroup):
            yield from ((name, inner) for inner in command.commands)


def _root() -> TyperGroup:
    assert isinstance(command_line.app, typer.Typer)
    root = typer.main.get_command(command_line.app)
    assert isinstance(root, TyperGroup)
    return root


def _options() -> Iterator[tuple[str, TyperOption]]:
    for words in _commands():
        command: object = _root()
        for word in words:
            assert isinstance(command, TyperGroup)
            command = command.commands[word]
        for parameter in command.params:  # type: ignore[attr-defined]  # of commands and groups alike
            if isinstance(parameter, TyperOption):
                yield " ".join(words), parameter


@pytest.mark.parametrize("words", list(_commands()), ids=" ".join)
def test_help_fits_80_columns_and_speaks_plainly(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(*words, "--help")
    assert shown.code == 0 and not shown.stderr
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in shown.stdout
    assert not re.search(r"<bool>|range>|None\b|Typer|Optional", shown.stdout)
    assert re.search(rf"Usage: tandem {' '.join(words)}".rstrip(), shown.stdout)
    # An option or an id that is broken in its middle can't be copied.
    for _, option in (found for found in _options() if found[0] == " ".join(words)):
        assert all(name in shown.stdout for name in option.opts), option.opts


def test_the_commands_stand_under_their_headings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("--help").stdout
    places = [shown.index(f"─ {heading} ─") for heading in HEADINGS]
    assert places == sorted(places)
    for heading, name, _ in command_line.COMMANDS:
        section = shown[places[HEADINGS.index(heading)] :].partition("╰")[0]
        assert re.search(rf"^│ {name} ", section, re.MULTILINE), (heading, name)


def test_the_version_names_tandem_and_nats_server() -> None:
    shown = run("--version")
    assert shown.code == 0
    tandem = r"tandem \d+\.\d+\.\d+ \(commit (unknown|[0-9a-f]{40}( and changes)?)\)"
    assert re.fullmatch(tandem + r", nats-server \d+\.\d+\.\d+, Python \d+\.\d+\.\d+\n", shown.stdout)


def test_one_thing_has_one_option() -> None:
    names: dict[str, set[str]] = defaultdict(set)
    for command, option in _options():
        for name in option.opts:
            names[name].add(command)
    assert not {"--basis", "--who", "--to", "--folder", "--rules-file"} & set(names)
    assert names["--rate"] == {"load"}
    assert {"explain", "feasibility", "get", "evidence make"} <= names["--legal-basis"] & names["--reviewer"]
    assert {"up", "replay"} == names["--clock-rate"]
    # The same name has the same meaning, and so the same kind of value.
    types = defaultdict(set)
    for _, option in _options():
        types[option.opts[0]].add(str(option.type_descriptor.annotation))
    mixed = {name: kinds for name, kinds in types.items() if len(kinds) > 1}
    assert mixed == {}, mixed
