"""A mesh clock that tests can set ahead."""

from __future__ import annotations

from services.common.clock import MeshClock, wall_us


class Settable(MeshClock):
    """A mesh clock that is `ahead_ms` ahead of wall time. Set it with monkeypatch, so that it is reset after the test."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return wall_us() // 1000 + type(self).ahead_ms
