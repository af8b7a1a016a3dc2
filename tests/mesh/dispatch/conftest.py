"""Fixtures of the tests of the legs."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.messaging.bus import Bus
from services.dispatch.settings import DispatchSettings
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import settings


@pytest.fixture
def police(nats: TestServer, bus: Bus, tmp_path: Path) -> DispatchSettings:
    """Settings of a police leg over a running mesh."""
    return settings("police", nats, tmp_path)
