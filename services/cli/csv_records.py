"""CSV tables of wearers, orders and devices: their columns, and the registry records, or the fault, of each line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.client.calls import AnyRecord
from services.common import fields, times
from services.common.errors import InvalidField
from services.common.failure import MISUSED, CommandFailed, trouble
from services.registry.records import translate
from tandem.registry.v1 import registry_pb2

Row = Mapping[str, str]
_SEXES = {"": "UNSPECIFIED", "F": "FEMALE", "M": "MALE"}
UTF_8 = "UTF-8"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""Marks with which a file in UTF-16 begins, such as Excel's "Unicode text"."""


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


@dataclass(frozen=True, slots=True)
class CsvTable:
    """The lines of a CSV file."""

    lines: list[CsvLine]
    encoding: str
    """Encoding in which the file was read, UTF-8 or CP949."""


def read(path: Path) -> CsvTable:
    """All lines of a table; the header tells which one it is. Raises CommandFailed if it is none of them."""
    try:
        text, encoding = _decoded(path.read_bytes())
        # Lines end as they do in the file, so that a quoted cell keeps its line breaks.
        return CsvTable(list(_lines(path, csv.DictReader(io.StringIO(text, newline=""), strict=True))), encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path}: {trouble(error)}", MISUSED) from None
    except csv.Error as error:
        raise CommandFailed(f"{path}: isn't CSV: {error}", MISUSED) from None


def _decoded(data: bytes) -> tuple[str, str]:
    """The text of a file, and its encoding. Korean spreadsheets write CP949 unless they are asked for UTF-8.

    Raises UnicodeDecodeError, also for a text that is UTF-8 but for some bytes: as CP949 its names would be other names.
    """
    if data.startswith(UTF_16):
        raise UnicodeDecodeError("utf-16", data, 0, 2, "a spreadsheet's Unicode text")
    try:
        # Spreadsheets write a byte order mark, which isn't part of the first column's name.
        return data.decode("utf-8-sig"), UTF_8
    except UnicodeDecodeError:
        nearly = data.decode("utf-8", "replace")
        if nearly.count("\ufffd") <= sum("가" <= char <= "힣" for char in nearly):
            raise
    return data.decode("cp949"), "CP949"


def _lines(path: Path, reader: csv.DictReader[str]) -> Iterator[CsvLine]:
    header = reader.fieldnames or ()
    for columns, parse in ((WEARERS, _wearer), (ORDERS, _order), (DEVICES, _device)):
        if columns[0].name not in header:
            continue
        required = [column.name for column in columns if column.required]
        known = sorted(column.name for column in columns)
        missing, unknown = sorted(set(required) - set(header)), sorted(set(header) - set(known))
        if missing or unknown:
            errors = [f"the column {column} is missing" for column in missing]
            errors += [f"{column!r} isn't a column; known columns: {', '.join(known)}" for column in unknown]
            raise CommandFailed(f"{path}: {'; '.join(errors)}", MISUSED)
        for row in reader:
            yield _line(reader.line_num, row, columns, parse=parse)
        return
    first = ", ".join(columns[0].name for columns in TABLES.values())
    raise CommandFailed(
        f"{path}: the first line must name the columns, among them one of {first} (see examples/)", MISUSED
    )


def _line(
    number: int, row: dict[str, str], columns: tuple[CsvColumn, ...], *, parse: Callable[[Row], tuple[AnyRecord, ...]]
) -> CsvLine:
    if None in row or None in row.values():
        return CsvLine(number, (), Fault(number, "", "has another number of columns than the header"))
    try:
        return CsvLine(number, parse(row))
    except InvalidField as error:
        sample = example_of_table(columns, error.field)
        reason = f"{error.reason} (example: {sample})" if sample and "(example" not in error.reason else error.reason
        return CsvLine(number, (), Fault(number, error.field, reason))


# ── wearers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _device(row: Row) -> tuple[AnyRecord, ...]:
    device = registry_pb2.Device(
        device_id=row["device_id"],
        person_id=row["person_id"],
        source_version=_whole("source_version", row.get("source_version", "")),
        vendor_id=row.get("vendor_id", ""),
    )
    translate.parse_device(device)
    return (device,)


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


@dataclass(frozen=True, slots=True)
class CsvColumn:
    """A column of a table."""

    name: str
    meaning: str
    example: str
    required: bool = False


_VERSION = CsvColumn("source_version", "version of the record, greater with each change; 0 if empty", "3")
_VENDOR = CsvColumn("vendor_id", "vendor that reports for the device", "demo")
_NATIONAL_ID = "national number, 13 digits, with or without a hyphen"
_SEX = "F, M or empty"
_MANY = "several are separated by semicolons"

WEARERS = (
    CsvColumn("wearer_id", "the Ministry's id", "W-1", required=True),
    CsvColumn("national_id", _NATIONAL_ID, "900101-1234567", required=True),
    CsvColumn("name", "name, at most 200 characters", "홍길동", required=True),
    CsvColumn("birth_date", "date of birth", "1990-01-31", required=True),
    CsvColumn("sex", _SEX, "M"),
    CsvColumn("phone", "telephone number", "010-0000-0000"),
    CsvColumn("address", "address, at most 400 characters", "서울 종로구 1"),
    CsvColumn("tag_device_ids", f"tags that the wearer wears; {_MANY}", "tag-1;tag-2"),
    CsvColumn("tag_basis", "why they are worn: JUDGMENT, STALKING_ORDER, OTHER or empty", "JUDGMENT"),
    _VENDOR,
    _VERSION,
)
ORDERS = (
    CsvColumn("order_id", "the police's id", "O-1", required=True),
    CsvColumn("respondent_name", "name of the person whom the order restrains", "홍길동", required=True),
    CsvColumn("respondent_birth_date", "the respondent's date of birth", "1990-01-31", required=True),
    CsvColumn("respondent_national_id", _NATIONAL_ID, "900101-1234567"),
    CsvColumn("respondent_sex", _SEX, "M"),
    CsvColumn("respondent_phone", "telephone number", "010-0000-0000"),
    CsvColumn("respondent_address", "address", "서울 종로구 1"),
    CsvColumn("protected_person_ids", f"persons whom it protects; {_MANY}", "P-1;P-2"),
    CsvColumn(
        "protected_person_names", "their names, in the same order; empty if the registry knows them", "성춘향;이몽룡"
    ),
    CsvColumn("place_ids", f"protected places; {_MANY}", "home;work"),
    CsvColumn("lat_deg", "latitude of each place, degrees", "37.5665;37.5700"),
    CsvColumn("lon_deg", "longitude of each place, degrees", "126.9780;126.9920"),
    CsvColumn("radius_m", "radius of each place, metres", "30;50"),
    CsvColumn("valid_from", "first moment, with its offset from UTC", "2026-07-06T09:00:00+09:00", required=True),
    CsvColumn(
        "named_to_respondent", "yes or no for each place: whether the order names it to the respondent", "yes;no"
    ),
    CsvColumn(
        "valid_until",
        "end, exclusive; empty for STALKING_INTERIM",
        "2026-10-06T09:00:00+09:00",
        required=True,
    ),
    CsvColumn("fit_by", "STALKING_TAG: the court's time for the fitting of a tag", ""),
    CsvColumn("type", "legal type of the order, a name of `OrderType` without its prefix", "STALKING_APPROACH"),
    CsvColumn("extensions", "number of extensions so far", "1"),
    CsvColumn("duration_reason", "why it lasts longer than its type allows", "court order 2026-123"),
    _VERSION,
)
DEVICES = (
    CsvColumn("device_id", "id of the app, pager or watch", "phone-1", required=True),
    CsvColumn("person_id", "the police's id of the protected person who carries it", "P-1", required=True),
    _VENDOR,
    _VERSION,
)
TABLES = {"wearers.csv": WEARERS, "orders.csv": ORDERS, "devices.csv": DEVICES}
"""Columns of each table, by the name of its example in examples/. The first column tells a table from the others."""


def example_of_table(columns: tuple[CsvColumn, ...], field: str) -> str:
    """An example value for a field that a fault names, such as tag_device_ids[1]; empty if it is no column."""
    name = field.partition("[")[0]
    return next((column.example for column in columns if column.name == name), "")
