"""Court's functions run in a process of their own: each failure, and a process that doesn't end, has its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from services.common.failure import AGED_OUT, FAILED, MISUSED
from services.console.pages.texts import TEXTS
from services.console.review.documents import CourtCalls, DocumentRefused
from services.console.settings import ConsoleSettings
from tests.support.console import court_functions


def calls(folder: Path, *, within_s: float = 60.0) -> CourtCalls:
    return CourtCalls(ConsoleSettings(mesh_folder=folder), within_s=within_s)


def is_running(pid: Path) -> bool:
    return pid.exists() and Path(f"/proc/{pid.read_text()}").exists()


async def test_a_result_comes_back_and_the_process_has_no_setting_of_the_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_DEV_SECRET", "secret")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    names = await calls(tmp_path).call(court_functions.environment_of, pid=tmp_path / "pid")
    assert "OTEL_SDK_DISABLED" in names and not any(name.startswith("TANDEM_") for name in names)
    assert not is_running(tmp_path / "pid")


def test_the_legs_databases_are_those_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_POLICE_DATABASE_URL", "postgresql://police@db/tandem")
    records = calls(tmp_path).records
    assert records.folder == tmp_path
    assert records.databases == {"probation": "", "police": "postgresql://police@db/tandem", "warning": ""}


@pytest.mark.parametrize(
    ("function", "arguments", "answer"),
    [
        (court_functions.fail, {"exit_code": FAILED}, (502, "document_failed", r"legal_basis: is \x1b[31mwrong")),
        (court_functions.fail, {"exit_code": MISUSED}, (400, "document_refused", r"legal_basis: is \x1b[31mwrong")),
        (court_functions.fail, {"exit_code": AGED_OUT}, (410, "document_aged_out", r"legal_basis: is \x1b[31mwrong")),
        (
            court_functions.fail_to_read,
            {"path": Path("/none")},
            (502, "document_failed", "/none: there is no such file or folder"),
        ),
        (court_functions.break_down, {}, (502, "document_failed", "")),
        (court_functions.die, {}, (502, "document_failed", "")),
    ],
)
async def test_each_failure_has_its_answer(
    tmp_path: Path,
    function: Callable[..., Coroutine[Any, Any, object]],
    arguments: dict[str, object],
    answer: tuple[int, str, str],
) -> None:
    with pytest.raises(DocumentRefused) as refused:
        await calls(tmp_path).call(function, **arguments)
    assert (refused.value.status, refused.value.reason, refused.value.detail) == answer
    assert refused.value.reason in TEXTS


async def test_a_process_that_does_not_end_is_killed(tmp_path: Path) -> None:
    with pytest.raises(DocumentRefused) as refused:
        await calls(tmp_path, within_s=5.0).call(court_functions.never_end, pid=tmp_path / "pid")
    assert (refused.value.status, refused.value.reason) == (504, "document_slow")
    assert (tmp_path / "pid").exists() and not is_running(tmp_path / "pid")


async def test_a_reader_who_leaves_ends_the_process(tmp_path: Path) -> None:
    call = asyncio.create_task(calls(tmp_path).call(court_functions.never_end, pid=tmp_path / "pid"))
    await court_functions.wait_for(tmp_path / "pid")
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled() and not is_running(tmp_path / "pid")


async def test_one_document_is_made_at_a_time_and_none_without_a_mesh(tmp_path: Path) -> None:
    busy = calls(tmp_path)
    first = asyncio.create_task(busy.call(court_functions.wait_for, path=tmp_path / "go-on"))
    await asyncio.sleep(0)
    with pytest.raises(DocumentRefused) as refused:
        await busy.call(court_functions.wait_for, path=tmp_path / "go-on")
    assert (refused.value.status, refused.value.reason) == (503, "document_busy")
    (tmp_path / "go-on").write_text("done")
    assert await first == "done"
    elsewhere = CourtCalls(ConsoleSettings())
    assert not elsewhere.is_available
    with pytest.raises(DocumentRefused) as nowhere:
        _ = elsewhere.records
    assert (nowhere.value.status, nowhere.value.reason) == (501, "document_elsewhere")
