"""The wearer's best inference of her position from contacts."""

from __future__ import annotations

import pytest

from services.geofence.domain.contacts.inference import expected_error_mm
from services.geofence.domain.kinematics.geometry import Vector, ecef_mm
from tests.support.geofence.stories import place_e7


def at(north_m: float, east_m: float = 0) -> Vector:
    return ecef_mm(*place_e7(north_m, east_m))


def test_one_contact_leaves_two_thirds_of_the_radius() -> None:
    assert expected_error_mm(at(0), 1_000_000, []) == pytest.approx(667_000, rel=0.03)


def test_a_contact_at_the_same_place_tells_nothing_more() -> None:
    once = expected_error_mm(at(0), 1_000_000, [])
    assert expected_error_mm(at(0), 1_000_000, [at(0)] * 5) == once


def test_two_contacts_leave_what_both_discs_share() -> None:
    errors = [expected_error_mm(at(0), 1_000_000, [at(metres)]) for metres in (200, 600, 1_200, 1_800)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] > 500_000 > errors[2]


def test_contacts_far_away_say_nothing_about_this_one() -> None:
    assert expected_error_mm(at(0), 1_000_000, [at(2_100), at(0, 5_000)]) == expected_error_mm(at(0), 1_000_000, [])
