"""docs/settings.md has each setting of each service, and none that isn't."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.settings import CommonSettings
from services.console.settings import ConsoleSettings
from services.dispatch.settings import DispatchSettings
from services.geofence.settings import GeofenceSettings as GeofenceSettings
from services.ingest.settings import IngestSettings as IngestSettings
from services.registry.settings import RegistrySettings

DOC = Path(__file__).parents[2] / "docs" / "settings.md"
EVERYBODYS = (CommonSettings, ConsoleSettings, DispatchSettings, GeofenceSettings, IngestSettings, RegistrySettings)


def names(settings: type[CommonSettings]) -> Iterator[str]:
    """The environment variables of a class."""
    return (f"TANDEM_{name.upper()}" for name in settings.model_fields if name != "leg")  # an argument, never a setting


@pytest.mark.parametrize("settings", EVERYBODYS, ids=lambda one: one.__module__)
def test_each_setting_is_in_the_document(settings: type[CommonSettings]) -> None:
    text = DOC.read_text()
    assert not [name for name in names(settings) if f"`{name}`" not in text]


def test_the_document_names_no_setting_that_nobody_reads() -> None:
    folders = [DOC.parents[1] / one for one in ("services", "bench")]
    sources = "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    known = {name for settings in EVERYBODYS for name in names(settings)}
    rows = re.findall(r"^\| `(TANDEM_\w+)`", DOC.read_text(), re.M)
    assert rows and not [name for name in rows if name not in known and f'"{name}"' not in sources]
