"""Commands on the mesh run in a process of their own: each exit code, and a process that doesn't end, has its answer."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from services.console.pages.texts import TEXTS
from services.console.review.mesh_commands import CommandRefused, MeshCommands

PREAMBLE = "import os, pathlib, sys, time; out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1]); "


def commands(folder: Path, script: str, *, within_s: float = 60.0) -> MeshCommands:
    return MeshCommands(folder, command=(sys.executable, "-c", PREAMBLE + script), within_s=within_s)


async def test_the_files_that_the_command_wrote_are_returned_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_PORT", "7408")
    monkeypatch.setenv("TANDEM_POLICE_DATABASE_URL", "postgresql://police@db/tandem")
    script = (
        "out.write_text(' '.join(sys.argv[1:])); out.with_suffix('.tar').write_text(' '.join(sorted(os.environ)));"
        f"pathlib.Path({str(tmp_path / 'where')!r}).write_text(str(out))"
    )
    made = await commands(tmp_path, script).report(("incident-1", "--leg=police"))
    assert set(made) == {".pdf", ".tar"}
    assert made[".pdf"].startswith(b"report incident-1 --leg=police --out ") and str(tmp_path).encode() in made[".pdf"]
    assert b"TANDEM_POLICE_DATABASE_URL" in made[".tar"] and b"TANDEM_PORT" not in made[".tar"]
    assert not Path((tmp_path / "where").read_text()).parent.exists()


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (1, 502, "document_failed"),
        (2, 400, "document_refused"),
        (3, 410, "document_aged_out"),
        (-9, 502, "document_failed"),
    ],
)
async def test_each_failure_of_the_command_has_its_answer(tmp_path: Path, code: int, status: int, reason: str) -> None:
    ended = f"sys.exit({code})" if code > 0 else "os.kill(os.getpid(), 9)"
    script = (
        f"out.write_text('half'); print('first'); print('legal_basis: is wrong', file=sys.stderr, flush=True); {ended}"
    )
    with pytest.raises(CommandRefused) as refused:
        await commands(tmp_path, script).report(("incident-1",))
    assert (refused.value.status, refused.value.reason) == (status, reason)
    assert refused.value.detail == "legal_basis: is wrong"
    assert reason in TEXTS


def is_running(pid: Path) -> bool:
    return pid.exists() and Path(f"/proc/{pid.read_text()}").exists()


async def test_a_command_that_does_not_end_is_killed(tmp_path: Path) -> None:
    script = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(600)"
    with pytest.raises(CommandRefused) as refused:
        await commands(tmp_path, script, within_s=2.0).report(("incident-1",))
    assert (refused.value.status, refused.value.reason) == (504, "document_slow")
    assert not is_running(tmp_path / "pid")


async def test_one_document_is_made_at_a_time_and_none_without_a_mesh(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    busy = commands(
        tmp_path, f"[time.sleep(0.02) for _ in iter(lambda: pathlib.Path({str(go_on)!r}).exists(), True)]; out.touch()"
    )
    first = asyncio.create_task(busy.report(("incident-1",)))
    await asyncio.sleep(0)
    with pytest.raises(CommandRefused) as refused:
        await busy.report(("incident-2",))
    assert (refused.value.status, refused.value.reason) == (503, "document_busy")
    go_on.touch()
    assert set(await first) == {".pdf"}
    with pytest.raises(CommandRefused) as elsewhere:
        await MeshCommands(None).report(("incident-1",))
    assert (elsewhere.value.status, elsewhere.value.reason) == (501, "document_elsewhere")
