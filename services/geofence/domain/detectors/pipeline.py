"""All detectors, in the order in which the fold calls each of their hooks. The order of an entry's alerts follows from it.

Two modules aren't part of it, because they decide on no single case: `anomalies` judges the track of a device before the cases that
name the device, and `outages` compares the silences of all wearers.
"""

from __future__ import annotations

from services.geofence.domain import accounts
from services.geofence.domain.detectors import (
    approach,
    clearing,
    closest_approach,
    distances,
    equipment,
    muting,
    possible_presence,
    silence,
    withheld_clearing,
)
from services.geofence.domain.detectors.detector import Detector

DETECTORS: tuple[Detector, ...] = (
    approach.DETECTOR,
    clearing.DETECTOR,
    withheld_clearing.DETECTOR,
    closest_approach.DETECTOR,
    distances.DETECTOR,
    equipment.DETECTOR,
    silence.DETECTOR,
    possible_presence.DETECTOR,
    muting.DETECTOR,
    accounts.DETECTOR,
)
