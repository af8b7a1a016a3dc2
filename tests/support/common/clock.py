"""A mesh clock that a test puts forward."""

from __future__ import annotations

from services.common.clock import MeshClock, wall_us


class Settable(MeshClock):
    """As far ahead of the wall as the test says; monkeypatch `ahead_ms`, so that it goes back after the test."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return wall_us() // 1000 + type(self).ahead_ms
