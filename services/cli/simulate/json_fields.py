"""Check JSON against a protobuf message before it is parsed, so that an error names the field and shows an example.

protobuf's own errors name fields in another spelling than the files, and no example.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from services.common import times
from services.common.rpc.errors import InvalidField

TIME = "google.protobuf.Timestamp"
TIME_EXAMPLE = "2026-07-06T09:00:00+09:00"
_WHOLE = frozenset(
    (
        *(FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64),
        *(FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64),
    )
)
_DECIMAL = frozenset((FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT))

_SCALARS = {
    **dict.fromkeys(_WHOLE, "must be a whole number (example: 1)"),
    **dict.fromkeys(_DECIMAL, "must be a number (example: 37.5)"),
    FieldDescriptor.CPPTYPE_BOOL: "must be true or false",
}


def check(message: Any, content: object, path: str = "") -> None:
    """Checks that a JSON value fits a message: known fields, each with a value of its type. Raises InvalidField with its path.

    `message` is the descriptor of the message.
    """
    if not isinstance(content, dict):
        raise InvalidField(path, "must be a JSON object")
    for name, value in content.items():
        field = message.fields_by_name.get(name) or message.fields_by_camelcase_name.get(name)
        place = f"{path}.{name}" if path else str(name)
        if field is None:
            raise InvalidField(place, _unknown(message, str(name)))
        if value is not None:
            _check_value(field, value, place)


def _unknown(message: Any, name: str) -> str:
    if close := get_close_matches(name, message.fields_by_name, n=1):
        return f"isn't a field of {message.name}; did you mean {close[0]}?"
    return f"isn't a field of {message.name}; its fields: {', '.join(message.fields_by_name)}"


def _check_value(field: FieldDescriptor, value: object, place: str) -> None:
    if not field.is_repeated:
        _check_single(field, value, place)
    elif field.message_type is None or not field.message_type.GetOptions().map_entry:
        if not isinstance(value, list):
            raise InvalidField(place, "must be a list")
        for n, element in enumerate(value):
            _check_single(field, element, f"{place}[{n}]")


def _check_single(field: FieldDescriptor, value: object, place: str) -> None:
    if field.message_type is not None:
        if field.message_type.full_name == TIME:
            _check_time(value, place)
        else:
            check(field.message_type, value, place)
    elif field.enum_type is not None:
        names = field.enum_type.values_by_name
        if isinstance(value, bool) or not (isinstance(value, int) or value in names):
            raise InvalidField(place, f"must be one of {', '.join(_meant(names))}")
    elif not _is_scalar(field, value):
        raise InvalidField(place, _SCALARS.get(field.cpp_type, 'must be a text in quotes (example: "W-1")'))


def _is_scalar(field: FieldDescriptor, value: object) -> bool:
    if field.cpp_type in _WHOLE:
        return _is_number(value, whole=True)
    if field.cpp_type in _DECIMAL:
        return _is_number(value, whole=False)
    return isinstance(value, bool if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else str)


def _meant(names: Any) -> list[str]:
    """Names of an enum without the one that means nothing, unless it is the only one."""
    return [name for name in names if not name.endswith("UNSPECIFIED")] or list(names)


def _check_time(value: object, place: str) -> None:
    try:
        times.from_rfc3339(value if isinstance(value, str) else "")
    except ValueError:
        raise InvalidField(place, f"must be an RFC 3339 time (example: {TIME_EXAMPLE})") from None


def _is_number(value: object, *, whole: bool) -> bool:
    """Whether protobuf takes a value as a number. It takes texts too, as JSON has no 64-bit numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return float(value).is_integer() or not whole
    except (ValueError, OverflowError):
        return False
