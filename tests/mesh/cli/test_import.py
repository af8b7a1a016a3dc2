"""`tandem import` into a running mesh: bad lines are reported, and the others are imported and matched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.common.mesh import RunningMesh, running_mesh, tandem

WEARERS = """\
wearer_id,national_id,name,birth_date,tag_device_ids
w-1,800101-1234560,홍길동,1980-01-01,tag-1
w-2,800101-12,성춘향,1980-01-01,
w-3,750505-1234567,변학도,1975-05-05,tag-3
"""
ORDERS = """\
order_id,respondent_national_id,respondent_name,respondent_birth_date,protected_person_ids,protected_person_names,\
place_ids,lat_deg,lon_deg,radius_m,valid_from,valid_until,type
o-1,8001011234560,홍길동,1980-01-01,p-1,이몽룡,home,37.5,127,50,2026-01-01T00:00:00Z,2096-01-01T00:00:00Z,POLICE_EMERGENCY
o-2,,변학도,1975-05-05,p-unknown,,,,,,2026-01-01T00:00:00Z,2096-01-01T00:00:00Z,
o-3,,변학도,1975-05-05,p-1,,home,39.9,116.4,50,2026-01-01T00:00:00Z,2096-01-01T00:00:00Z,
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("mesh") / "m") as running:
        yield running


def _table(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, "utf-8")
    return str(path)


def test_lines_are_imported_and_bad_ones_named(mesh: RunningMesh, tmp_path: Path) -> None:
    wearers, orders = _table(tmp_path, "wearers.csv", WEARERS), _table(tmp_path, "orders.csv", ORDERS)
    imported = tandem("import", wearers, "--dir", str(mesh.folder))
    assert imported.returncode == 2
    assert "line 3: national_id: must be 13 digits" in imported.stdout
    assert "warning line 4: wearer.national_id: the check digit fails" in imported.stdout
    assert "2 of 3 lines imported: 4 stored" in imported.stdout
    assert "홍길동" not in imported.stdout and "800101" not in imported.stdout
    assert "importing" in imported.stderr

    imported = tandem("import", orders, "--dir", str(mesh.folder))
    assert imported.returncode == 2
    assert "warning line 2: order.valid_until" in imported.stdout
    assert "line 3: order.protected_person_ids[0]: no such protected person" in imported.stdout
    assert "line 4: order.places[0].circle: lies outside Korea" in imported.stdout
    assert "1 of 3 lines imported: 2 stored" in imported.stdout
    repeated = tandem("import", wearers, "--dir", str(mesh.folder))
    assert "4 unchanged" in repeated.stdout
    log = (mesh.folder / "logs" / "registry.log").read_text()
    assert log.count('"order_matched"') == 1


def test_a_dry_run_needs_no_mesh_and_imports_nothing(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none")
    bad = tandem("import", _table(tmp_path, "wearers.csv", WEARERS), "--dry-run", "--dir", nowhere)
    assert bad.returncode == 2 and "2 of 3 lines would be imported" in bad.stdout and "line 3" in bad.stdout
    good = WEARERS.replace("800101-12,", "800101-1234567,")
    fine = tandem("import", _table(tmp_path, "good.csv", good), "--dry-run", "--dir", nowhere)
    assert fine.returncode == 0 and "3 of 3 lines would be imported" in fine.stdout
    assert tandem("import", str(tmp_path / "good.csv"), "--dir", nowhere).returncode == 2
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").glob("data"))
