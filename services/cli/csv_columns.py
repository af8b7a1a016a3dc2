"""Columns of the CSV tables that `tandem import` takes: what each holds, with an example."""

from __future__ import annotations

from dataclasses import dataclass


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


def example(columns: tuple[CsvColumn, ...], field: str) -> str:
    """An example value for a field that a fault names, such as tag_device_ids[1]; empty if it is no column."""
    name = field.partition("[")[0]
    return next((column.example for column in columns if column.name == name), "")
