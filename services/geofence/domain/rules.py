"""Settings of the decision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings that an entry of the log can replace; decisions name the set they rest on."""

    rules_id: str = "default"
    clear_margin_mm: int = 0
    """A ring is cleared only beyond its radius by this much; 0 means a tenth of the radius, at least 20 m."""
    clear_after_ms: int = 60_000
    """... and for this long without a break."""
    late_after_ms: int = 60_000
    """A decision that comes this long after the moment it holds for is marked late."""

    def clear_margin_of(self, radius_mm: int) -> int:
        """Margin of a ring, mm."""
        return self.clear_margin_mm or max(20_000, radius_mm // 10)
