"""Read the decision rules of a back-test from a TOML file with the fields of `Rules`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from services.cli.failure import trouble
from services.cli.simulate.files import FileError, InputPlace
from services.common.rpc.errors import InvalidField
from services.geofence.rules import translate as rules_translate
from tandem.common.v1 import log_pb2

_WHERE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_UINT32_MAX = (1 << 32) - 1


def load(path: Path) -> log_pb2.Rules:
    """Reads rules and checks them by the same bounds as the mesh. Raises FileError with line and field."""
    try:
        text = path.read_text("utf-8")
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = _WHERE.search(str(error))
        line = int(where[1]) if where and where[1] else None
        raise FileError(InputPlace(path, line), f"isn't TOML: {_WHERE.sub('', str(error))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(InputPlace(path), trouble(error)) from None
    rules = log_pb2.Rules()
    known = rules.DESCRIPTOR.fields_by_name
    for name, value in content.items():
        place = InputPlace(path, _line_of(text, name), name)
        if name not in known:
            raise FileError(place, f"isn't a setting; known settings: {', '.join(known)}")
        if known[name].type == known[name].TYPE_STRING:
            if not isinstance(value, str):
                raise FileError(place, 'must be a text (example: "night")')
        elif type(value) is not int or not 0 <= value <= _UINT32_MAX:
            raise FileError(place, "must be a whole number, 0 or more (example: 60)")
        setattr(rules, name, value)
    try:
        rules_translate.check_rules("", rules)
    except InvalidField as error:
        raise FileError(InputPlace(path, _line_of(text, error.field), error.field), error.reason) from None
    return rules


def _line_of(text: str, name: str) -> int | None:
    """Line number of a setting; None if it isn't found, as for a missing setting."""
    for number, line in enumerate(text.split("\n"), 1):
        if re.match(rf"""\s*\[*\s*["']?{re.escape(name)}\b""", line):
            return number
    return None
