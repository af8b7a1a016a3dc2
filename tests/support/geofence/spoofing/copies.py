"""Test support: attacks by frozen positions and by copies of the tag's own track."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.geofence.spoofing.scene import (
    AWAY_M,
    END_S,
    WALK_MPS,
    Claim,
    Report,
    Scene,
    come_near,
)

DAY_S = 86_400.0
OUTSIDE_M = 350.0
"""Where a frozen position is: a car gets there in 15 s."""
FAR_M = 20_000.0


def frozen(scene: Scene) -> list[Report]:
    """350 m away, equal to the digit in every report."""
    return [Claim(at_s, OUTSIDE_M, 0) for at_s in scene.times()]


def frozen_far(scene: Scene) -> list[Report]:
    """20 km away, equal to the digit in every report."""
    return [Claim(at_s, FAR_M, 0) for at_s in scene.times()]


def frozen_then_moved(scene: Scene) -> list[Report]:
    """350 m away, equal to the digit for 5 minutes, and then on foot from there."""
    return [
        *(Claim(at_s, OUTSIDE_M, 0) for at_s in scene.times(until_s=300)),
        *scene.go(WALK_MPS, FAR_M, from_s=300, start_m=OUTSIDE_M),
    ]


def frozen_with_jitter(scene: Scene) -> list[Report]:
    """350 m away, within 10 cm in every report."""
    return [*scene.stay(OUTSIDE_M, sigma_m=0.05)]


def frozen_between_two(scene: Scene) -> list[Report]:
    """350 m away, at two points in turn, each equal to the digit."""
    return [Claim(at_s, OUTSIDE_M + number % 2, 0) for number, at_s in enumerate(scene.times())]


# ── copies of the tag's own track ───────────────────────────────────────────────────────────────────────────────────


def left_yesterday(scene: Scene) -> None:
    """Yesterday he stood there too, left on foot and then by car, and was at home until today."""
    leave_and_come_back(scene, DAY_S)


def left_an_hour_ago(scene: Scene) -> None:
    """An hour ago he stood there too, and left."""
    leave_and_come_back(scene, 5400)


def leave_and_come_back(scene: Scene, ago_s: float) -> None:
    """He stood there, left some time ago, and has come back on foot."""
    come_near(scene, until_s=-ago_s)
    scene.history += departure(scene, from_s=-ago_s)
    back_s = -600 - (1500 - AWAY_M) / WALK_MPS
    at_s = scene.history[-1].at_s + 150
    while at_s < back_s - 150:
        scene.history.append(scene.noisy(at_s, 1500))
        at_s += 150
    come_near(scene)


def departure(scene: Scene, from_s: float) -> list[Claim]:
    """He walks for 5 minutes and drives on for 10, to 1,500 m from the home."""
    walk = scene.go(WALK_MPS, 480, from_s=from_s, until_s=from_s + 300)
    drive = scene.go(6, 1500, from_s=from_s + 300, until_s=from_s + 900, start_m=480)
    return walk + drive


def recorded(scene: Scene) -> list[Claim]:
    """The last true departure in the history: from the last position near her to 1,500 m away."""
    back_s = -600 - (1500 - AWAY_M) / WALK_MPS
    earlier = [claim for claim in scene.history if claim.at_s < back_s]
    last = max(number for number, claim in enumerate(earlier) if claim.north_m < AWAY_M + 10)
    return earlier[last : last + round(900 / scene.every_s)]


def repeated(scene: Scene, track: Sequence[Claim], every_s: float | None = None) -> list[Claim]:
    """A recorded track from second 0 on, equal to the digit, and then standing where it ends."""
    step_s = every_s or scene.every_s
    found = [claim._replace(at_s=number * step_s) for number, claim in enumerate(track)]
    end = found[-1]
    return [
        *(claim for claim in found if claim.at_s < END_S),
        *scene.stay(end.north_m, end.east_m, from_s=end.at_s + step_s),
    ]


def own_departure(scene: Scene) -> list[Report]:
    """His own recorded departure, equal to the digit."""
    return [*repeated(scene, recorded(scene))]


def own_departure_faster(scene: Scene) -> list[Report]:
    """His own recorded departure, in two thirds of the time."""
    return [*repeated(scene, recorded(scene), every_s=scene.every_s * 2 / 3)]


def own_departure_in_part(scene: Scene) -> list[Report]:
    """Every second position of his own recorded departure."""
    return [*repeated(scene, recorded(scene)[::2])]


def own_departure_with_pauses(scene: Scene) -> list[Report]:
    """His own recorded departure, each fourth position replaced by a made-up one between its neighbours."""
    track = recorded(scene)
    mixed = [
        claim._replace(north_m=(track[number - 1].north_m + track[number + 1].north_m) / 2)
        if number % 4 == 3 and number + 1 < len(track)
        else claim
        for number, claim in enumerate(track)
    ]
    return [*repeated(scene, mixed)]


def own_departure_with_noise(scene: Scene) -> list[Report]:
    """His own recorded departure with a noise of 30 cm."""
    track = [
        claim._replace(north_m=claim.north_m + scene.rng.gauss(0, 0.3), east_m=claim.east_m + scene.rng.gauss(0, 0.3))
        for claim in recorded(scene)
    ]
    return [*repeated(scene, track)]


def own_way_reversed(scene: Scene) -> list[Report]:
    """The way on which he came, backwards, equal to the digit."""
    way = [claim for claim in scene.history if claim.north_m > AWAY_M + 10]
    return [*repeated(scene, way[::-1])]


def standing_yesterday(scene: Scene) -> list[Report]:
    """Positions of yesterday from the place where he lives, 1,500 m away, equal to the digit."""
    there = [claim for claim in scene.history if -DAY_S + 1200 < claim.at_s < -DAY_S + 40_000]
    return [*repeated(scene, there)]
