"""docs/settings.md lists each setting of each service, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.settings import CommonSettings
from services.console.settings import ConsoleSettings
from services.dispatch.settings import DispatchSettings
from services.field.settings import FieldSettings
from services.geofence.settings import GeofenceSettings as GeofenceSettings
from services.ingest.settings import IngestSettings as IngestSettings
from services.registry.settings import RegistrySettings

DOC = Path(__file__).parents[2] / "docs" / "settings.md"
SETTINGS_CLASSES = (
    CommonSettings,
    ConsoleSettings,
    DispatchSettings,
    FieldSettings,
    GeofenceSettings,
    IngestSettings,
    RegistrySettings,
)


def names(settings: type[CommonSettings]) -> Iterator[str]:
    """Environment variables of a settings class."""
    return (f"TANDEM_{name.upper()}" for name in settings.model_fields if name != "leg")  # an argument, never a setting


@pytest.mark.parametrize("settings", SETTINGS_CLASSES, ids=lambda settings: settings.__module__)
def test_each_setting_is_documented(settings: type[CommonSettings]) -> None:
    text = DOC.read_text()
    assert not [name for name in names(settings) if f"`{name}`" not in text]


def test_the_document_lists_only_settings_that_are_read() -> None:
    folders = [DOC.parents[1] / name for name in ("services", "bench")]
    sources = "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    known = {name for settings in SETTINGS_CLASSES for name in names(settings)}
    rows = re.findall(r"^\| `(TANDEM_\w+)`", DOC.read_text(), re.M)
    assert rows and not [name for name in rows if name not in known and f'"{name}"' not in sources]
