"""CSV tables of wearers and orders: each line becomes registry records, or a fault."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.cli.bulk import AnyRecord
from services.cli.failure import MISUSED, CommandFailed
from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.registry.records import translate
from tandem.registry.v1 import registry_pb2

Row = Mapping[str, str]
_WEARERS = ("wearer_id", "national_id", "name", "birth_date")
_ORDERS = ("order_id", "respondent_name", "respondent_birth_date", "valid_from", "valid_until")
_SEXES = {"": "UNSPECIFIED", "F": "FEMALE", "M": "MALE"}


@dataclass(frozen=True, slots=True)
class Fault:
    """An error in one line of an input file."""

    line: int
    """Line number, from 1. The header is line 1."""
    field: str
    """Column name, or the field path that the registry reports."""
    reason: str
    counted: str = "line"
    """Unit of `line`: "line", or "point" in a GPX file."""

    def __str__(self) -> str:
        place = f"{self.counted} {self.line}"
        return f"{place}: {self.field}: {self.reason}" if self.field else f"{place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class CsvLine:
    """One CSV line: its records in the order in which they must be put, or its fault."""

    number: int
    records: tuple[AnyRecord, ...]
    fault: Fault | None = None


def read(path: Path) -> list[CsvLine]:
    """All lines of wearers.csv or orders.csv; the header tells them apart. Raises CommandFailed if the file is neither."""
    try:
        # Spreadsheets write a byte order mark, which isn't part of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(_lines(path, csv.DictReader(file, strict=True)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CommandFailed(f"{path}: {error}", MISUSED) from None


def _lines(path: Path, reader: csv.DictReader[str]) -> Iterator[CsvLine]:
    header = reader.fieldnames or ()
    for needed, parse, known in ((_WEARERS, _wearer, _WEARER_COLUMNS), (_ORDERS, _order, _ORDER_COLUMNS)):
        if needed[0] not in header:
            continue
        missing, unknown = sorted(set(needed) - set(header)), sorted(set(header) - known)
        if missing or unknown:
            errors = [f"the column {column} is missing" for column in missing]
            errors += [f"{column!r} isn't a column; known columns: {', '.join(sorted(known))}" for column in unknown]
            raise CommandFailed(f"{path}: {'; '.join(errors)}", MISUSED)
        for row in reader:
            yield _line(reader.line_num, row, parse)
        return
    raise CommandFailed(f"{path}: the first line must name the columns, wearer_id or order_id among them", MISUSED)


def _line(number: int, row: dict[str, str], parse: Callable[[Row], tuple[AnyRecord, ...]]) -> CsvLine:
    if None in row or None in row.values():
        return CsvLine(number, (), Fault(number, "", "has another number of columns than the header"))
    try:
        return CsvLine(number, parse(row))
    except InvalidField as error:
        return CsvLine(number, (), Fault(number, error.field, error.reason))


# ── wearers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_WEARER_COLUMNS = {*_WEARERS, "source_version", "sex", "phone", "address", "tag_device_ids", "vendor_id", "tag_basis"}


def _wearer(row: Row) -> tuple[AnyRecord, ...]:
    version = _whole("source_version", row.get("source_version", ""))
    wearer = registry_pb2.Wearer(
        wearer_id=row["wearer_id"],
        national_id=row["national_id"],
        name=row["name"],
        birth_date=row["birth_date"],
        source_version=version,
        sex=_sex("sex", row.get("sex", "")),
        phone=row.get("phone", ""),
        address=row.get("address", ""),
    )
    translate.parse_wearer(wearer)
    vendor_id = fields.vendor_id("vendor_id", row.get("vendor_id", ""))
    basis = _basis(row.get("tag_basis", ""))
    tags = [
        registry_pb2.Tag(
            device_id=device_id,
            wearer_id=wearer.wearer_id,
            source_version=version,
            vendor_id=vendor_id,
            basis=basis,
        )
        for device_id in _list(row.get("tag_device_ids", ""))
    ]
    for n, tag in enumerate(tags):
        _checked(translate.parse_tag, tag, f"tag_device_ids[{n}]")
    return (wearer, *tags)


# ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_ORDER_COLUMNS = {
    *_ORDERS,
    "source_version",
    "type",
    "extensions",
    "duration_reason",
    "fit_by",
    "respondent_national_id",
    "respondent_sex",
    "respondent_phone",
    "respondent_address",
    "protected_person_ids",
    "protected_person_names",
    "place_ids",
    "lat_deg",
    "lon_deg",
    "radius_m",
    "named_to_respondent",
}


def _order(row: Row) -> tuple[AnyRecord, ...]:
    version = _whole("source_version", row.get("source_version", ""))
    order = registry_pb2.Order(
        order_id=row["order_id"],
        respondent=registry_pb2.Respondent(
            national_id=row.get("respondent_national_id", ""),
            name=row["respondent_name"],
            birth_date=row["respondent_birth_date"],
            sex=_sex("respondent_sex", row.get("respondent_sex", "")),
            phone=row.get("respondent_phone", ""),
            address=row.get("respondent_address", ""),
        ),
        protected_person_ids=_list(row.get("protected_person_ids", "")),
        source_version=version,
        type=_type(row.get("type", "")),
        extensions=_whole("extensions", row.get("extensions", "")),
        duration_reason=row.get("duration_reason", ""),
    )
    for column in ("valid_from", "valid_until", "fit_by"):
        if not row.get(column) and column != "valid_from":
            continue  # whether the type allows that is the registry's check
        try:
            getattr(order, column).CopyFrom(times.to_timestamp(times.from_rfc3339(row[column])))
        except ValueError:
            raise InvalidField(column, "must be an RFC 3339 time (example: 2026-07-06T09:00:00+09:00)") from None
    _add_places(order, row)
    translate.parse_order(order)
    return (*_persons(order, row, version), order)


def _persons(order: registry_pb2.Order, row: Row, version: int) -> list[AnyRecord]:
    names = _list(row.get("protected_person_names", ""))
    if not names:
        return []  # the registry knows these persons already
    if len(names) != len(order.protected_person_ids):
        raise InvalidField("protected_person_names", "must have as many entries as protected_person_ids")
    persons = [
        registry_pb2.ProtectedPerson(person_id=person_id, name=name, source_version=version)
        for person_id, name in zip(order.protected_person_ids, names, strict=True)
    ]
    for n, person in enumerate(persons):
        _checked(translate.parse_protected_person, person, f"protected_person_names[{n}]")
    return list(persons)


def _add_places(order: registry_pb2.Order, row: Row) -> None:
    ids = _list(row.get("place_ids", ""))
    columns = {name: _list(row.get(name, "")) for name in ("lat_deg", "lon_deg", "radius_m")}
    for name, values in columns.items():
        if len(values) != len(ids):
            raise InvalidField(name, "must have as many entries as place_ids")
    named = _list(row.get("named_to_respondent", "")) or ["no"] * len(ids)
    if len(named) != len(ids) or not set(named) <= {"yes", "no"}:
        raise InvalidField("named_to_respondent", 'must have "yes" or "no" for each of place_ids (example: yes;no)')
    for n, place_id in enumerate(ids):
        place = order.places.add(place_id=place_id, named_to_respondent=named[n] == "yes")
        for name, values in columns.items():
            try:
                setattr(place.circle, name, float(values[n]))
            except ValueError:
                raise InvalidField(name, "must be numbers") from None


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _list(text: str) -> list[str]:
    """The values of a cell that separates them with semicolons."""
    return [value.strip() for value in text.split(";")] if text.strip() else []


def _whole(column: str, text: str) -> int:
    try:
        value = int(text or "0")
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 31:
        raise InvalidField(column, "must be a whole number, 0 or more")
    return value


def _sex(column: str, text: str) -> registry_pb2.Sex.ValueType:
    if text not in _SEXES:
        raise InvalidField(column, "must be F, M or empty")
    return registry_pb2.Sex.Value(f"SEX_{_SEXES[text]}")


def _basis(text: str) -> registry_pb2.TagBasis.ValueType:
    try:
        return registry_pb2.TagBasis.Value(f"TAG_BASIS_{text or 'UNSPECIFIED'}")
    except ValueError:
        known = ", ".join(basis.name for basis in translate.TAG_BASES.values())
        raise InvalidField("tag_basis", f"must be one of {known}, or empty") from None


def _type(text: str) -> registry_pb2.OrderType.ValueType:
    try:
        return registry_pb2.OrderType.Value(f"ORDER_TYPE_{text or 'UNSPECIFIED'}")
    except ValueError:
        known = ", ".join(order_type.name for order_type in translate.ORDER_TYPES.values())
        raise InvalidField("type", f"must be one of {known}, or empty") from None


def _checked(parse: Callable[..., object], message: AnyRecord, column: str) -> None:
    try:
        parse(message)
    except InvalidField as error:
        raise InvalidField(column, error.reason) from None
