"""Shared stories of the decision, if they are present next to the project: accounts hold at least the expected time inside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.geofence.geolife import parse_rfc3339, shared_story

LIMITS_S = {
    "00b_inside_5h_47s": 17_690,
    "49a_backfill_1h_no_passby": 1_100,
    "49b_backfill_after_a_later_passby": 1_100,
    "50_offline_while_inside_backfill": 1_500,
    "51_5min_offline_backfill_90s": 170,
}
"""By story: the least time within 100 m that the account of some episode must hold, seconds."""


@pytest.mark.parametrize("name", LIMITS_S)
def test_an_account_of_the_nearest_ring_holds_the_time_inside(name: str, tmp_path: Path) -> None:
    accounts = [
        alert for alert in shared_story(name, tmp_path) if alert["ring_m"] == 100 and alert.get("inside") is not None
    ]
    inside_s = [
        sum(parse_rfc3339(to) - parse_rfc3339(from_) for from_, to in account["inside"]) for account in accounts
    ]
    print(f"{name}: {max(inside_s):.1f} s")
    assert max(inside_s) > LIMITS_S[name]
