"""Lines of wearers.csv, orders.csv and devices.csv become records or faults."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from services.cli import csv_records
from services.common.failure import MISUSED, CommandFailed
from tandem.registry.v1 import registry_pb2

WEARERS = "wearer_id,national_id,name,birth_date,source_version,sex,phone,address,tag_device_ids\n"
VENDORS = "wearer_id,national_id,name,birth_date,vendor_id\n"
ORDERS = (
    "order_id,respondent_national_id,respondent_name,respondent_birth_date,protected_person_ids,protected_person_names,"
    "place_ids,lat_deg,lon_deg,radius_m,valid_from,valid_until,type,source_version\n"
)
GOOD_ORDER = (
    "o-1,,홍길동,1980-01-01,p-1;p-2,성춘향;이몽룡,home,37.5,127,50,2026-01-01T00:00:00Z,2026-02-01T00:00:00+09:00"
)


def read(folder: Path, text: str) -> list[csv_records.CsvLine]:
    path = folder / "table.csv"
    path.write_text(text, "utf-8")
    return csv_records.read(path).lines


def test_a_wearer_line_gives_the_wearer_and_tags(tmp_path: Path) -> None:
    line = 'w-1,800101-1234567,홍길동,1980-01-01,3,M,010-1234-5678,"서울, 종로구 1",tag-1; tag-2\n'
    (found,) = read(tmp_path, "\ufeff" + WEARERS + line)
    wearer, *tags = found.records
    assert found.number == 2
    assert wearer == registry_pb2.Wearer(
        wearer_id="w-1",
        national_id="800101-1234567",
        name="홍길동",
        birth_date="1980-01-01",
        source_version=3,
        sex=registry_pb2.SEX_MALE,
        phone="010-1234-5678",
        address="서울, 종로구 1",
    )
    assert tags == [registry_pb2.Tag(device_id=f"tag-{n}", wearer_id="w-1", source_version=3) for n in (1, 2)]


def test_the_tags_of_a_line_are_bound_to_its_vendor(tmp_path: Path) -> None:
    header = WEARERS.strip() + ",vendor_id\n"
    line = "w-1,800101-1234567,홍길동,1980-01-01,3,M,,,tag-1;tag-2,acme\n"
    (found,) = read(tmp_path, header + line)
    tags = [record for record in found.records if isinstance(record, registry_pb2.Tag)]
    assert [(tag.device_id, tag.vendor_id) for tag in tags] == [("tag-1", "acme"), ("tag-2", "acme")]


def test_the_tags_of_a_line_are_worn_on_its_basis(tmp_path: Path) -> None:
    header = WEARERS.strip() + ",tag_basis\n"
    line = "w-1,800101-1234567,홍길동,1980-01-01,3,M,,,tag-1;tag-2,"
    (found,) = read(tmp_path, f"{header}{line}STALKING_ORDER\n")
    tags = [record for record in found.records if isinstance(record, registry_pb2.Tag)]
    assert {tag.basis for tag in tags} == {registry_pb2.TAG_BASIS_STALKING_ORDER} and len(tags) == 2
    (found,) = read(tmp_path, f"{header}{line}PAROLE\n")
    assert found.fault and str(found.fault) == (
        "line 2: tag_basis: must be one of JUDGMENT, STALKING_ORDER, OTHER, or empty (example: JUDGMENT)"
    )


def test_an_order_follows_its_protected_persons(tmp_path: Path) -> None:
    (found,) = read(tmp_path, f"{ORDERS}{GOOD_ORDER},STALKING_APPROACH,2\n")
    *persons, order = found.records
    assert persons == [
        registry_pb2.ProtectedPerson(person_id=person_id, name=name, source_version=2)
        for person_id, name in (("p-1", "성춘향"), ("p-2", "이몽룡"))
    ]
    assert isinstance(order, registry_pb2.Order)
    assert order.type == registry_pb2.ORDER_TYPE_STALKING_APPROACH
    assert (order.valid_from.seconds, order.valid_until.seconds) == (1_767_225_600, 1_769_871_600)
    assert order.places[0].circle.radius_m == 50


@pytest.mark.parametrize(
    ("header", "line", "field"),
    [
        (WEARERS, "w-1,800101-123,홍길동,1980-01-01,1,,,,", "national_id"),
        (WEARERS, "w-1,800101-1234567,홍길동,1980-02-30,1,,,,", "birth_date"),
        (WEARERS, "w-1,800101-1234567,홍길동,1980-01-01,x,,,,", "source_version"),
        (WEARERS, "w-1,800101-1234567,홍길동,1980-01-01,1,male,,,", "sex"),
        (WEARERS, "w-1,800101-1234567,홍길동,1980-01-01,1,,,,a;b c", "tag_device_ids[1]"),
        (VENDORS, "w-1,800101-1234567,홍길동,1980-01-01,ACME", "vendor_id"),
        (WEARERS, "w-1,800101-1234567", ""),
        (WEARERS, "w-1,800101-1234567,홍길동,1980-01-01,1,,,,,surplus", ""),
        (ORDERS, GOOD_ORDER.replace("2026-02-01T00:00:00+09:00", "yesterday") + ",,1", "valid_until"),
        (ORDERS, GOOD_ORDER.replace("2026-02", "2025-02") + ",,1", "valid_until"),
        (ORDERS, GOOD_ORDER.replace("성춘향;이몽룡", "성춘향") + ",,1", "protected_person_names"),
        (ORDERS, GOOD_ORDER.replace("37.5", "37.5;38") + ",,1", "lat_deg"),
        (ORDERS, GOOD_ORDER.replace("37.5", "north") + ",,1", "lat_deg"),
        (ORDERS, GOOD_ORDER.replace("37.5", "97.5") + ",,1", "places[0].circle.lat_deg"),
        (ORDERS, GOOD_ORDER + ",SOMETHING,1", "type"),
    ],
)
def test_a_bad_line_is_named_with_its_field_and_other_lines_are_read(
    tmp_path: Path, header: str, line: str, field: str
) -> None:
    good = {
        WEARERS: "w-2,900101-1234567,성춘향,1990-01-01,1,F,,,",
        VENDORS: "w-2,900101-1234567,성춘향,1990-01-01,acme",
        ORDERS: f"{GOOD_ORDER},,1",
    }[header]
    bad, other = read(tmp_path, f"{header}{line}\n{good}\n")
    assert bad.fault is not None and (bad.fault.line, bad.fault.field) == (2, field)
    assert bad.records == () and "홍길동" not in str(bad.fault) and "800101" not in str(bad.fault)
    assert other.number == 3 and other.fault is None and other.records


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "first line"),
        ("name,age\nx,1\n", "first line"),
        ("wearer_id,name,birth_date\n", "'national_id' is missing|national_id is missing"),
        (WEARERS.strip() + ",shoe_size\n", "shoe_size"),
    ],
)
def test_a_file_with_unknown_columns_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(CommandFailed, match=expected) as failed:
        read(tmp_path, text)
    assert failed.value.exit_code == MISUSED


def test_an_absent_or_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.csv").write_bytes(b"wearer_id\xff\xfe")
    for name in ("broken.csv", "none.csv"):
        with pytest.raises(CommandFailed) as failed:
            csv_records.read(tmp_path / name)
        assert failed.value.exit_code == MISUSED


def test_only_an_interim_order_may_have_no_end_and_only_an_order_of_item_3_2_the_courts_time(tmp_path: Path) -> None:
    header = ORDERS.strip() + ",fit_by\n"
    order = "o-1,,홍길동,1980-01-01,p-1,성춘향,home,37.5,127,50,2027-05-01T00:00:00+09:00"
    lines = (
        f"{order},,STALKING_INTERIM,1,",
        f"{order},,STALKING_PROTECTION,1,",
        f"{order},2027-06-01T00:00:00+09:00,STALKING_TAG,1,2027-05-02T15:00:00+09:00",
        f"{order},2027-06-01T00:00:00+09:00,STALKING_APPROACH,1,2027-05-02T15:00:00+09:00",
        f"{order},2027-06-01T00:00:00+09:00,STALKING_TAG,1,tomorrow",
    )
    interim, protection, tag, approach, garbled = read(tmp_path, header + "\n".join(lines) + "\n")
    assert interim.fault is None and not interim.records[-1].HasField("valid_until")  # type: ignore[arg-type]
    assert protection.fault and protection.fault.field == "valid_until"
    assert tag.fault is None and tag.records[-1].fit_by.seconds == 1_809_237_600  # type: ignore[union-attr]
    assert approach.fault and approach.fault.field == "fit_by"
    assert garbled.fault and "RFC 3339" in garbled.fault.reason


EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("name", [*csv_records.TABLES, "wearers-cp949.csv"])
def test_the_examples_are_read_without_a_fault(name: str) -> None:
    table = csv_records.read(EXAMPLES / name)
    assert table.lines and all(line.records and not line.fault for line in table.lines)
    assert table.encoding == ("CP949" if "cp949" in name else "UTF-8")
    columns = {column.name for column in csv_records.TABLES[name.replace("-cp949", "")]}
    assert set((EXAMPLES / name).read_bytes().splitlines()[0].decode("ascii").split(",")) <= columns


def test_both_encodings_give_the_same_records() -> None:
    utf_8, cp949 = (csv_records.read(EXAMPLES / name).lines for name in ("wearers.csv", "wearers-cp949.csv"))
    assert [line.records for line in utf_8] == [line.records for line in cp949]


def test_a_damaged_utf_8_file_isnt_read_as_cp949(tmp_path: Path) -> None:
    # Read as CP949, the names would be other names.
    path = tmp_path / "wearers.csv"
    data = (EXAMPLES / "wearers.csv").read_bytes()
    for lost in (name.encode()[1:2] for name in ("홍", "학")):
        path.write_bytes(data.replace(lost, b"", 1))
        with pytest.raises(CommandFailed, match="isn't text in UTF-8"):
            csv_records.read(path)


def test_a_table_of_its_columns_examples_is_good(tmp_path: Path) -> None:
    for name, columns in csv_records.TABLES.items():
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerows(([column.name for column in columns], [column.example for column in columns]))
        (line,) = csv_records.read(path).lines
        assert line.fault is None, line.fault
