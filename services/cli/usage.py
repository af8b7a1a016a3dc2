"""Help and usage errors of the command line in plain words, and values of arguments that several commands check alike."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup, TyperOption

from services.common import fields, times
from services.common.errors import InvalidField
from services.common.failure import MISUSED, CommandFailed

MeshFolder = Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")]
"""The option with the folder of the mesh that a command is about."""
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
"""The option with which a command prints JSON in the place of tables."""

_NUMBERS = {
    "int_parsing": "isn't a whole number (example: 10)",
    "int_from_float": "isn't a whole number (example: 10)",
    "float_parsing": "isn't a number (example: 2.5)",
    "finite_number": "isn't a number (example: 2.5)",
}
"""Reason why a value isn't a number, by the type of pydantic's error."""
_BOUNDS = {"greater_than_equal": ("ge", "or more"), "less_than_equal": ("le", "or less")}


class Command(TyperCommand):
    """A command whose help shows no type for its switches: a switch has no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters of the command, with `--help`."""
        return _with_plain_types(ctx, super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands whose help shows no type for its switches."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters of the group, with `--help`."""
        return _with_plain_types(ctx, super().get_params(ctx))


def group(help_text: str, **options: Any) -> typer.Typer:
    """A group of commands under one name, such as `tandem ledger`. Its help opens if no command is given."""
    return typer.Typer(**{"cls": Group, "help": help_text, "no_args_is_help": True, **options})


def _with_plain_types(ctx: Any, parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.metavar is None:
            # The range of a number is shown beside its type.
            parameter.metavar = "" if parameter.is_flag else parameter.display_type(ctx).replace(" range", "")
    return parameters


def message_of(error: typer.TyperException) -> str:
    """One line that says what is wrong with the command line, and what was probably meant."""
    # Only the class of the errors is public, so their attributes are asked for by name.
    if possibilities := getattr(error, "possibilities", None):
        return f"No such option: {getattr(error, 'option_name', '')}. {did_you_mean(sorted(possibilities))}"
    cause = error.__cause__
    if isinstance(cause, ValidationError) and (parameter := getattr(error, "param", None)) is not None:
        return f"{_name_of(parameter)}: {_reason(cause)}"
    # Usage errors format themselves with the option's name; the public base class only has the text.
    describe = getattr(error, "format_message", error.__str__)
    return str(describe())


def did_you_mean(names: Sequence[str]) -> str:
    """The question for a mistyped name, such as: Did you mean 'trace'?"""
    return f"Did you mean {' or '.join(map(repr, names))}?"


def _name_of(parameter: Any) -> str:
    return "/".join(parameter.opts) if isinstance(parameter, TyperOption) else str(parameter.display_name_raw)


def _reason(error: ValidationError) -> str:
    detail = error.errors()[0]
    value = detail["input"]
    if reason := _NUMBERS.get(detail["type"]):
        return f"{value!r} {reason}"
    if bound := _BOUNDS.get(detail["type"]):
        key, words = bound
        return f"must be {detail['ctx'][key]:,} {words}, not {value}"
    return detail["msg"].removeprefix("Value error, ")


def typed_name() -> str:
    """`tandem` as it is typed in this folder: with its path, such as .venv/bin/tandem, where the shell doesn't find it."""
    if shutil.which("tandem"):
        return "tandem"
    own = Path(sys.executable).with_name("tandem")
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)


def required_id(name: str, value: str) -> None:
    """Raises CommandFailed with the name of the argument or option if its value isn't an id."""
    try:
        fields.required_id(name, value)
    except InvalidField as error:
        raise CommandFailed(str(error), MISUSED) from None


def moment_ms(option: str, value: str) -> int:
    """The time of an option, milliseconds since 1970 UTC. Raises CommandFailed if the value isn't an RFC 3339 time."""
    try:
        return times.from_rfc3339(value)
    except ValueError:
        raise CommandFailed(
            f'{option}: "{value}" is not an RFC 3339 time (example: 2026-07-06T09:00:00+09:00)', MISUSED
        ) from None
