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
    silent_notify_after_ms: int = 1_800_000
    """Probation is told of a wearer whose tags were not heard for so long."""
    reach_mps: int = 14
    """How fast a wearer may have moved since the last position: 50 km/h, the limit in Korean towns."""
    reach_most_ms: int = 480_000
    """... and for how long: the time that help needs. A set that went on growing would soon be the whole town and tell nobody where to
    go; of who could only be there later probation learns by the silence itself."""
    protected_lost_after_ms: int = 1_800_000
    """The police are told of a protected person whose devices were not heard for so long; phones sleep."""
    help_after_ms: int = 480_000
    """Help needs so long: police arrive 5 min 7 s after the call on average, and 100 m are 70 s on foot."""
    foot_mps: int = 2
    """Whoever is unseen is taken to go on at their last pace, and at this at least: somebody in a hurry on foot."""

    respond_p_pct: int = 20
    """A ring that demands a response is entered where the probability of being inside is at least so many percent, on its line or
    just beyond it. Nobody is sent by the others: any position enters them."""

    def clear_margin_of(self, radius_mm: int) -> int:
        """Margin of a ring, mm."""
        return self.clear_margin_mm or max(20_000, radius_mm // 10)
