"""All detectors, in the order in which the fold calls each of their hooks. The order of an entry's alerts follows from it.

Rings are entered and cleared before equipment events, silences and possible presences are retracted: the all-clear of a ring comes
first. As time passes, straps that are open at the end of an authorised removal come before silences, because they are a sign of
evasion. Silences come before the events of devices whose record has ended, the ends of muting and the rings that no device measures
any more, then amended accounts and late evidence.

Four things aren't hooks. `anomalies` judges the track of a device before the cases that name the device, `sensing` judges its newest
fix after them and has moments of its own, and `outages` compares the silences of all wearers: none of them decides on a single case. A
case that begins emits its active equipment events before any other decision (`cases.begin`), although a case that ends retracts them
after its rings.
"""

from __future__ import annotations

from services.geofence.domain.decisions import Detector
from services.geofence.domain.detectors import (
    accounts,
    approach,
    clearing,
    closest_approach,
    distances,
    ended_records,
    equipment,
    first_contact,
    late_evidence,
    sensing,
    silence,
    wearing,
    withheld_clearing,
)
from services.geofence.domain.notices import OPEN_NOTICES

DETECTORS: tuple[Detector, ...] = (
    approach.DETECTOR,
    clearing.DETECTOR,
    clearing.RETURNS,
    withheld_clearing.DETECTOR,
    closest_approach.DETECTOR,
    distances.DETECTOR,
    equipment.DETECTOR,
    wearing.REMOVAL_DETECTOR,
    wearing.FITTING_DETECTOR,
    silence.DETECTOR,
    ended_records.DETECTOR,
    equipment.END_OF_HELD_EVENTS,
    approach.POSSIBLE_PRESENCE,
    clearing.END_OF_MUTING,
    clearing.END_OF_WAIT,
    accounts.DETECTOR,
    late_evidence.DETECTOR,
    sensing.DETECTOR,
    first_contact.DETECTOR,
)
ON_FIX = tuple(detector.on_fix for detector in DETECTORS if detector.on_fix)
ON_BATCH = tuple(detector.on_batch for detector in DETECTORS if detector.on_batch)
ON_TIME = tuple(detector.on_time for detector in DETECTORS if detector.on_time)
ON_AMEND = tuple(detector.on_amend for detector in DETECTORS if detector.on_amend)
ON_END = tuple(detector.on_end for detector in DETECTORS if detector.on_end)
AWAITS_REPORT = tuple(detector.awaits_report for detector in DETECTORS if detector.awaits_report)
RANGES_MM = tuple(detector.range_mm for detector in DETECTORS if detector.range_mm)
WHY = {detection.alert_type: why for detector in DETECTORS for detection, why in detector.why.items()}
"""Why an alert of a kind and demand was emitted."""
PARTS = (*(part for detector in DETECTORS for part in detector.parts), OPEN_NOTICES)
