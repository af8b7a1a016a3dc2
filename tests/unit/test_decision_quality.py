"""The study of the decision's quality: what is played was fixed before anything was tuned by it."""

from __future__ import annotations

import hashlib

from bench import decision_noise, decision_placement
from tests.support import geolife

PLACED = "60dddea040163679dbfe44af74c718b13c82ae1760ae1f9db3de3051c96e6564"
REPORTED = "93177165167ed0392321773a3d309ed9cd0c78026654ebecdc1c3e6350285fd9"


def test_the_placement_and_the_noise_are_those_that_were_fixed_beforehand() -> None:
    made = decision_placement.plays(geolife.require_geolife())
    assert len({play.name for play in made}) == len(made)
    assert decision_placement.digest(made) == PLACED
    said = hashlib.sha256()
    for play in made[::100]:
        for every_ms in (15_000, 60_000):
            said.update(repr([tuple(one) for one in decision_noise.reports(play, every_ms)]).encode())
    assert said.hexdigest() == REPORTED
