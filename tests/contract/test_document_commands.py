"""Commands that the documents name exist: `tandem` with its subcommands and options, and the targets of `make`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import cast

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from services.cli.__main__ import COMMANDS, app
from tests.support.documents import FENCE, ROOT, documents

INLINE = re.compile(r"`([^`\n]+)`")
TANDEM = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?tandem (.*)$")
MAKE = re.compile(r"^(?:\$ )?make ([a-z][a-z0-9-]*)")
END = re.compile(r"^(?:\||\|\||&&|&|;|\d?>.*|<.*|\.\.\.|#.*)$")
"""Words of a shell that end a command."""
OLD = ("CHANGELOG.md", "docs/adr")
"""Documents that tell what was so at their time."""


def lines_of(text: str) -> Iterator[str]:
    """Lines of code of a page: those of its fenced blocks, continued lines in one, and its code spans."""
    for _, block in FENCE.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from INLINE.findall(FENCE.sub("", text))


def words_of(command: str) -> list[str]:
    """Words of a command up to its end or redirection."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:  # a quotation that the page cuts short
        words = command.split()
    return words[: next((number for number, word in enumerate(words) if END.match(word)), len(words))]


@cache
def root_command() -> TyperGroup:
    """The `tandem` command with its subcommands."""
    return cast(TyperGroup, typer.main.get_command(cast(typer.Typer, app)))


def fault_of(words: list[str]) -> str:
    """What is wrong with the words behind `tandem`, or an empty text."""
    root = root_command()
    command: TyperCommand | TyperGroup = root
    for word in words:
        if isinstance(command, TyperGroup) and not word.startswith("-"):
            found = command.commands.get(word)
            if found is None:
                return "" if command is root and word.isupper() else f"there is no {word}"
            command = cast(TyperCommand | TyperGroup, found)
        elif word.startswith("--") and word != "--help":
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            if word.partition("=")[0] not in known:
                return f"there is no option {word}"
    return ""


def test_the_documents_name_commands_and_options_that_exist() -> None:
    faults, checked = [], 0
    for path in _pages():
        for line in lines_of(path.read_text("utf-8")):
            if match := TANDEM.match(line.strip()):
                checked += 1
                if fault := fault_of(words_of(match[1])):
                    faults.append(f"{path.relative_to(ROOT)}: {line.strip()}: {fault}")
    assert checked > 150 and faults == []


def test_the_page_of_examples_names_each_command() -> None:
    page = (ROOT / "docs" / "reference" / "commands-by-example.md").read_text("utf-8")
    listed = re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| [a-z ]+ \| (`.*) \|$", page, re.MULTILINE)))
    assert sorted(listed) == sorted(name for _, name, _ in COMMANDS)
    assert [name for name in listed if not re.search(rf"`tandem {name}\b", page)] == []


def test_the_documents_name_targets_of_make_that_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {
        (str(path.relative_to(ROOT)), match[1])
        for path in _pages()
        for line in lines_of(path.read_text("utf-8"))
        if (match := MAKE.match(line.strip()))
    }
    assert len(named) > 30 and sorted(name for name in named if name[1] not in targets) == []


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("evidence make I --dir DIR --out FILE", ""),
        ("COMMAND --help", ""),
        ("evidence INCIDENT --dir DIR", "there is no INCIDENT"),
        ("evidence incident-1 --dir DIR", "there is no incident-1"),
        ("status --all", "there is no option --all"),
        ("backtest --scenario=s.json > out --wrong", ""),
        ("tag list W --legal-basis TAG_31_8_2", ""),
    ],
)
def test_a_wrong_command_is_found(command: str, fault: str) -> None:
    assert fault_of(words_of(command)) == fault


def _pages() -> list[Path]:
    return [path for path in documents() if not str(path.relative_to(ROOT)).startswith(OLD)]
