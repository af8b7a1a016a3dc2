"""Test support: ways that a single device can't reveal, because an honest device may report the same."""

from __future__ import annotations

from tests.support.geofence.spoofing import copies
from tests.support.geofence.spoofing.scene import AWAY_M, WALK_MPS, Attack, Report, Scene

OUTSIDE_M = 350.0


def walks_away(scene: Scene) -> list[Report]:
    """Away on foot."""
    return [*scene.go(WALK_MPS, 3000)]


def drives_off(scene: Scene) -> list[Report]:
    """Pulls away and drives at 12 m/s."""
    return [
        scene.noisy(at_s, AWAY_M + min(5000, 12 * at_s if at_s > 15 else 0.8 * at_s * at_s)) for at_s in scene.times()
    ]


def town_speed_at_once(scene: Scene) -> list[Report]:
    """25 m/s from the first second on, and still at 600 m: at most 78 m ahead of a fast car."""
    return [*scene.go(25, 600)]


def road_speed_at_once(scene: Scene) -> list[Report]:
    """48 m/s from the first second, for 2 minutes: at most 290 m ahead of a fast car, which a receiver may err by."""
    return [*scene.go(48, AWAY_M + 48 * 120)]


def within_a_car_of_here(scene: Scene) -> list[Report]:
    """350 m away from one report to the next, and there with a receiver's noise: a car gets there in the 15 s."""
    return [*scene.stay(OUTSIDE_M)]


def within_a_minute_of_here(scene: Scene) -> list[Report]:
    """2 km away from one report to the next: a car gets there in the minute between them."""
    return [*scene.stay(2000)]


def vague_for_minutes(scene: Scene) -> list[Report]:
    """5 minutes with an accuracy of 1 km, as in an underground car park, then 1.5 km away."""
    return [*scene.stay(AWAY_M, until_s=300, accuracy_m=1000), *scene.stay(1500, from_s=300)]


def drives_off_every_179_s(scene: Scene) -> list[Report]:
    """Drives off, with a report each 179 s."""
    return [scene.noisy(at_s, AWAY_M + 12 * at_s) for at_s in range(179, 1800, 179)]


def noisy_copy(scene: Scene) -> list[Report]:
    """His own recorded departure with a noise of 3 m, as large as a receiver's error."""
    track = [
        claim._replace(north_m=claim.north_m + scene.rng.gauss(0, 3), east_m=claim.east_m + scene.rng.gauss(0, 3))
        for claim in copies.recorded(scene)
    ]
    return [*copies.repeated(scene, track)]


DRIFTS: dict[str, Attack] = {
    "walks away": Attack(walks_away),
    "drives off": Attack(drives_off),
    "drives off, a report each 179 s": Attack(drives_off_every_179_s, every_s=30),
    "town speed at once": Attack(town_speed_at_once, every_s=5),
    "road speed at once": Attack(road_speed_at_once, every_s=5),
    "350 m away in 15 s": Attack(within_a_car_of_here),
    "2 km away in a minute": Attack(within_a_minute_of_here, every_s=60),
    "vague for five minutes, then away": Attack(vague_for_minutes),
    "copy with a receiver's noise": Attack(noisy_copy, before=copies.left_an_hour_ago),
}
"""Deceptions that no rule about the tag's positions can find: honest tags report the same."""
