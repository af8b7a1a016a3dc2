"""What keeps a service from running is one line that names the setting, the path, the reason and what to do."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from structlog.typing import EventDict

from services.common import service, settings
from services.common.errors import FailedPrecondition
from services.common.observability import health, telemetry
from services.common.observability.metrics import ProcessMetrics
from services.common.priority import PriorityGate
from services.common.privacy import secret_keys
from services.common.rpc import server
from services.common.rpc.history import HistoryBudget
from services.common.service import CANNOT_RUN, run_service
from services.common.web import receivers
from services.common.web.server import served
from services.dispatch.settings import DispatchSettings
from services.field.settings import FieldSettings
from services.registry.settings import RegistrySettings
from tests.support.dispatch.receivers import OLD_SECRET, configured
from tools.reference.settings import SECTIONS

MESH = {"nats_monitor_url": "http://127.0.0.1:8222"}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts no heartbeat, and leaves the logging and the environment of the tests as they are."""
    monkeypatch.setattr(health, "start", lambda: None)
    monkeypatch.setattr(telemetry, "configure", lambda _: None)
    for name in [name for name in os.environ if name.startswith(settings.PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        yield used.getsockname()[1]


def reason_of(logs: list[EventDict], read: Callable[[], Any], run: Callable[[Any], Any]) -> str:
    """Runs a service that can't run, and returns the reason in its one line."""
    with pytest.raises(SystemExit) as ended:
        run_service("test", read, run)
    assert ended.value.code == CANNOT_RUN
    assert [(line["event"], line["log_level"]) for line in logs] == [("cannot_run", "error")]
    return str(logs[0]["reason"])


def doing(work: Callable[[RegistrySettings], Any]) -> Callable[[Any], Any]:
    async def run(settings: RegistrySettings) -> None:
        work(settings)

    return run


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"TANDEM_PORT": "-1"}, "TANDEM_PORT: Input should be greater than or equal to 0"),
        ({"TANDEM_PORT": "a"}, "TANDEM_PORT: Input should be a valid integer"),
        ({"TANDEM_NATS_URL": "127.0.0.1:4222"}, "TANDEM_NATS_URL isn't a nats:// or tls:// URL"),
        ({"TANDEM_NATS_URL": "http://127.0.0.1:4222"}, "TANDEM_NATS_URL isn't a nats:// or tls:// URL"),
        ({"TANDEM_NATS_MONITOR_URL": "127.0.0.1:8222"}, 'TANDEM_NATS_MONITOR_URL: "127.0.0.1:8222" isn\'t an http://'),
        ({"TANDEM_SECRETS_DIR": "/no/such/folder"}, "TANDEM_SECRETS_DIR=/no/such/folder isn't a folder"),
        ({"TANDEM_PORT": "-1", "TANDEM_CLOCK_RATE": "0"}, "0; TANDEM_CLOCK_RATE: Input should be"),
    ],
)
def test_a_wrong_value_is_named(
    given: dict[str, str], reason: str, logs: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert reason in reason_of(logs, RegistrySettings, doing(lambda _: None))


def test_a_secret_in_a_wrong_value_is_not_shown(logs: list[EventDict], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_NATS_URL", "registry:hunter2@127.0.0.1:4222")
    monkeypatch.setenv("TANDEM_REGISTRY_KEY", "hunter2")
    assert "hunter2" not in reason_of(logs, RegistrySettings, doing(lambda _: None))


def test_files_that_cannot_be_used_are_named_with_their_setting(tmp_path: Path, logs: list[EventDict]) -> None:
    missing = tmp_path / "no" / "key"
    file = tmp_path / "file"
    folder = tmp_path / "data"
    file.write_text("no key")
    (folder / "registry.key").mkdir(parents=True)
    cases: tuple[tuple[dict[str, Any], Callable[[RegistrySettings], Any], str], ...] = (
        (
            {"data_dir": folder},
            RegistrySettings.keys,
            f"TANDEM_DATA_DIR: {folder}/registry.key: is a folder; name a file",
        ),
        ({"data_dir": file}, RegistrySettings.keys, f"TANDEM_DATA_DIR: {file}: exists, and isn't a folder"),
        ({"data_dir": file / "x"}, RegistrySettings.keys, f"TANDEM_DATA_DIR: {file}/x: lies in something that isn't a"),
        (
            {"warning_public_key": missing},
            lambda settings: secret_keys.read_public_key(settings.warning_public_key or missing),
            f"TANDEM_WARNING_PUBLIC_KEY: {missing}: there is no such file or folder: create it, or correct the setting",
        ),
        (
            {"warning_public_key": file},
            lambda settings: secret_keys.read_public_key(settings.warning_public_key or missing),
            f"TANDEM_WARNING_PUBLIC_KEY: {file} holds no public key",
        ),
        (
            {"ledger_key": missing},
            lambda settings: receivers.read(settings.ledger_key or missing),
            f"TANDEM_LEDGER_KEY: {missing}: there is no such file or folder",
        ),
        (
            {"ledger_key": file},
            lambda settings: secret_keys.read_keys(settings.ledger_key or missing),
            f"TANDEM_LEDGER_KEY: {file} must hold keys of 64 hex digits",
        ),
    )
    for given, work, reason in cases:
        logs.clear()
        settings = RegistrySettings.model_validate(MESH | {"data_dir": folder} | given)
        assert reason_of(logs, lambda settings=settings: settings, doing(work)).startswith(reason)  # type: ignore[misc]


def test_a_receiver_of_an_unknown_form_is_refused_with_the_form_to_use(tmp_path: Path, logs: list[EventDict]) -> None:
    path = configured(tmp_path, {"name": "board", "url": "https://b.example", "secrets": [OLD_SECRET], "form": "cap"})
    settings = DispatchSettings.model_validate(MESH | {"leg": "police", "webhooks": path})
    reason = reason_of(logs, lambda: settings, doing(lambda _: receivers.read(path)))
    expected = "isn't a list of receivers: board: form: must be step, or eido for the incident so far (example: eido)"
    assert reason == f"TANDEM_WEBHOOKS: {path} {expected}"


def test_a_disk_that_is_full_names_the_file_that_it_refused(
    tmp_path: Path, logs: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    settings = RegistrySettings(data_dir=tmp_path)
    reason = reason_of(logs, lambda: settings, doing(RegistrySettings.keys))
    assert reason.startswith(f"TANDEM_DATA_DIR: {tmp_path}/") and reason.endswith("the disk is full: free space on it")


def test_a_failure_in_a_group_of_tasks_is_named_as_well(tmp_path: Path, logs: list[EventDict]) -> None:
    def fail(settings: RegistrySettings) -> None:
        raise ExceptionGroup("tasks", [ExceptionGroup("more", [FileNotFoundError(2, "no", str(settings.ledger_key))])])

    settings = RegistrySettings(ledger_key=tmp_path / "key")
    assert "TANDEM_LEDGER_KEY" in reason_of(logs, lambda: settings, doing(fail))


@pytest.mark.parametrize("names", [("tls_cert", "tls_key"), ("http_tls_cert", "http_tls_key")])
def test_certificates_that_cannot_be_used_are_named(
    names: tuple[str, str], tmp_path: Path, logs: list[EventDict]
) -> None:
    file, missing = tmp_path / "file.pem", tmp_path / "missing.pem"
    file.write_text("no certificate")
    for key, reason in (
        (missing, f"{missing}: there is no such file"),
        (file, "aren't a certificate in PEM and its key"),
    ):
        logs.clear()
        files: Any = dict.fromkeys(names, file) | {names[1]: key}
        settings = FieldSettings.model_construct(**files)
        said = reason_of(logs, lambda settings=settings: settings, doing(lambda _: None))  # type: ignore[misc]
        assert reason in said and f"TANDEM_{names[1].upper()}" in said


async def test_a_port_in_use_is_named_with_its_setting(used_port: int) -> None:
    settings = RegistrySettings.model_validate(MESH | {"port": used_port})
    with pytest.raises(FailedPrecondition) as refused:
        async with server.serve(settings, lambda _: None, history=HistoryBudget(PriorityGate())):
            pass
    said = service.why_not(refused.value, settings) or ""
    assert said.startswith(f"TANDEM_PORT: 127.0.0.1:{used_port} can't be bound")
    settings = RegistrySettings.model_validate(MESH | {"metrics_port": used_port})
    closed = ProcessMetrics(CollectorRegistry()).http_closed
    with pytest.raises(FailedPrecondition) as refused:
        async with served("observe", (), "127.0.0.1", port=used_port, closed=closed):
            pass
    said = service.why_not(refused.value, settings) or ""
    assert said == f"TANDEM_METRICS_PORT: 127.0.0.1:{used_port} can't be bound: Address already in use"


@pytest.mark.parametrize(
    "defect", [ValueError("a defect"), OSError(5, "Input/output error", "/elsewhere/file"), KeyError("x")]
)
def test_a_defect_keeps_its_traceback(defect: Exception, logs: list[EventDict]) -> None:
    def fail(_: object) -> None:
        raise defect

    with pytest.raises(type(defect)):
        run_service("test", RegistrySettings, doing(fail))
    assert not logs


def test_a_setting_that_no_service_has_is_named_with_the_one_that_is_meant(
    logs: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_ACKNOWLEDGE_WITHIN", "20")
    monkeypatch.setenv("TANDEM_XYZ", "20")
    monkeypatch.setenv("TANDEM_ACKNOWLEDGE_WITHIN_S", "20")
    run_service("test", RegistrySettings, doing(lambda _: None))
    assert [(line["event"], line["setting"], line["similar"]) for line in logs] == [
        ("setting_unknown", "TANDEM_ACKNOWLEDGE_WITHIN", "TANDEM_ACKNOWLEDGE_WITHIN_S"),
        ("setting_unknown", "TANDEM_XYZ", ""),
    ]


def test_the_list_of_settings_has_those_of_each_service() -> None:
    declared = {
        f"{settings.PREFIX}{name.upper()}" for _, kind, _ in SECTIONS for name in kind.model_fields if name != "leg"
    }
    others = settings.NAMES - declared
    assert declared <= settings.NAMES
    assert others == {
        health.PIPE, "TANDEM_PAGER_COMMAND", "TANDEM_PAGER_WEBHOOKS", "TANDEM_SECRETS_DIR", "TANDEM_SHARED_DATA", "TANDEM_SHOTS",
    }  # fmt: skip
