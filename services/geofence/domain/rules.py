"""Settings of the decision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings of the decision, which an entry of the log can replace. Each decision names the set that it rests on."""

    rules_id: str = "default"
    clear_margin_mm: int = 0
    """Margin beyond a ring's radius at which the ring may be cleared, mm. 0 means a tenth of the radius, at least 20 m."""
    clear_after_ms: int = 60_000
    """How long the wearer must stay beyond the margin without a break before a ring is cleared."""
    late_after_ms: int = 60_000
    """A decision made this long after its moment is marked late."""
    silent_notify_after_ms: int = 1_800_000
    """Silence of all the wearer's tags after which probation is notified."""
    reach_mps: int = 14
    """Speed bound of a wearer since the last position, m/s: 50 km/h, the limit in Korean towns."""
    max_reach_ms: int = 480_000
    """How long after the last position the speed bound counts: the time that help needs. A region that grew further would soon be
    the whole town and say nothing about where to go. Probation learns of later possibilities by the silence itself."""
    protected_lost_after_ms: int = 1_800_000
    """Silence of all a protected person's devices after which the police are notified. Phones sleep."""
    help_after_ms: int = 480_000
    """Time until help arrives: police need 5 min 7 s after a call on average, and 100 m are 70 s on foot."""
    foot_mps: int = 2
    """Least speed of an unseen wearer, m/s: somebody in a hurry on foot. An unseen wearer is assumed to go on at the last known
    pace, and at this speed at least."""
    report_grace_ms: int = 10_000
    """How long a report of an unseen wearer may still come before somebody is sent. With a report each 60 s the third one is due at the
    end of the 3 minutes: in the study of real tracks, 536 of 857 such wearers were seen again within 5 s."""
    rest_ms: int = 400_000
    """Time at one place after which a wearer counts as stationary. In the study of real tracks this was longer than stops on the
    way."""
    rest_respond_after_ms: int = 540_000
    """Nobody is sent earlier than this after the last position of a wearer who was stationary, or whose tag had announced its silence.
    Most such gaps are rooms without reception, and end before. The desks are notified after 3 minutes."""
    away_respond_after_ms: int = 360_000
    """Nobody is sent earlier than this after the last position of a wearer who was going away from the target, who would have to turn
    round first."""

    urgent_within_mm: int = 600_000
    """The Ministry's rule of urgency: a location may go with a notice while the wearer is at most this far from the person, mm. Police
    practice shows her a map within 600 m."""
    urgent_closing_mps: int = 5
    """A location may also go with a notice while the wearer comes nearer at least this fast, m/s: faster than on foot."""
    urgent_place_within_mm: int = 300_000
    """A location may also go with a notice while the wearer is at most this far from a protected place of the order, mm."""

    respond_p_pct: int = 20
    """Least probability of being inside, in percent, at which a ring that demands a response is entered, on its line or just beyond
    it. Other rings send nobody: any position enters them."""

    def clear_margin_of(self, radius_mm: int) -> int:
        """Clearing margin of a ring, mm."""
        return self.clear_margin_mm or max(20_000, radius_mm // 10)
