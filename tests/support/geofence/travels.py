"""Random travels, folded with and without safe regions."""

from __future__ import annotations

import random
from dataclasses import dataclass

from services.geofence.domain import codec, safe_region
from services.geofence.domain.entries import FOLD_VERSION, Body, FoldVersion, Positions
from services.geofence.domain.kinematics.track import SafeRegion
from services.geofence.domain.state import State
from tandem.common.v1 import log_pb2
from tests.support.geofence.stories import Story, circle, polygon

Reports = list[tuple[float, str, float, float, float, float]]
"""Arrival second, device, north and east in metres, second of the fix, accuracy in metres."""


@dataclass
class Counting(Story):
    """A story that counts the reports whose device had a safe region."""

    held: int = 0

    def enter(self, at_s: float, body: Body) -> None:
        if isinstance(body, Positions):
            self.held += body.device_ids[0] in regions_of(self.state)
        super().enter(at_s, body)


def regions_of(state: State) -> dict[str, SafeRegion]:
    """The safe region of each device that has one."""
    return {device_id: track.safe_region for device_id, track in state.tracks.items() if track.safe_region}


class Whole(Story):
    """A story in which each report is fully evaluated."""

    def enter(self, at_s: float, body: Body) -> None:
        super().enter(at_s, body)
        safe_region.drop_all(self.state)


@dataclass
class Restored(Story):
    """A story whose evaluator is sometimes restored from a checkpoint."""

    seed: int = 0

    def enter(self, at_s: float, body: Body) -> None:
        super().enter(at_s, body)
        if random.Random(self.state.sequence * 1_000_003 + self.seed).random() < 0.1:
            self.state = codec.decode(codec.encode(self.state))


def travels(seed: int) -> Reports:
    """Two wearers and a person who move towards each other and away, with jumps, gaps, delays and disorder."""
    rng = random.Random(seed)
    north = {"tag": 12_000.0, "phone": 0.0, "tag2": -9000.0}
    east = dict.fromkeys(north, 0.0)
    mps = {"tag": rng.choice((4, 15, 40)), "phone": rng.choice((1, 10)), "tag2": rng.choice((2, 25))}
    last_s = dict.fromkeys(north, 0.0)
    towards = 1.0
    reports: Reports = []
    at_s = 0.0
    for _ in range(150):
        at_s += rng.choice((1, 5, 15, 15, 40))
        device = rng.choice(("tag", "tag", "phone", "tag2"))
        if rng.random() < 0.05:
            towards = rng.choice((1.0, 1.0, 0.0, -1.0))
        moved_m = mps[device] * (at_s - last_s[device]) * (towards if device != "phone" else rng.uniform(-1, 1))
        last_s[device] = at_s
        there = 0.0 if device == "phone" else north["phone"]
        north[device] += moved_m if there > north[device] else -moved_m
        east[device] += rng.uniform(-30, 30)
        jump_m = 6000.0 if rng.random() < 0.02 else 0.0
        late_s = rng.choice((0, 0, 0, 2, 30, 200))
        accuracy_m = rng.choice((5, 20, 300))
        reports.append((at_s + late_s, device, north[device] + jump_m, east[device], at_s, accuracy_m))
    return sorted(reports)


def deliver(story: Story, reports: Reports) -> Story:
    story.case()
    for i, (at_s, device, north_m, east_m, fix_s, accuracy_m) in enumerate(reports):
        if i == 10:
            story.enter(at_s, FoldVersion(FOLD_VERSION))  # from here on the fold asks for data
        if i == 20:
            square = polygon("yard", (3000, 500), (3000, 900), (3400, 900), (3400, 500))
            case = {
                "wearer_id": "w2",
                "tag_device_ids": ["tag2"],
                "places": [circle("home", -5000, 0, radius_m=50), square],
            }
            story.case(at_s, case="2", **case)
        if i == 90:
            watch = [log_pb2.ProtectedTarget(person_id="p", device_ids=["watch", "phone"])]
            story.case(at_s, version=2, persons=watch, places=[circle("work", 4000, 0, radius_m=30)])
        story.at(at_s, device, north_m, east_m, fix_s=fix_s, accuracy_m=accuracy_m)
    return story
