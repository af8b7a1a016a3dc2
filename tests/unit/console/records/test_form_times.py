"""Times of forms: Korea's, unless the text has an offset of its own. Times on pages: with the year where it isn't the present one."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidField
from services.console.pages import assets, records

NINE_IN_KOREA_MS = 1_783_296_000_000


@pytest.mark.parametrize(
    "text", ["2026-07-06T09:00", "2026-07-06 09:00:00", "2026-07-06T00:00:00Z", "2026-07-06T02:00+02:00"]
)
def test_a_time_without_an_offset_is_koreas_and_an_offset_counts(text: str) -> None:
    assert assets.ms_of_local(text) == NINE_IN_KOREA_MS


def test_a_time_of_another_year_is_shown_with_its_year() -> None:
    assert assets._clock(951_782_400_000) == "2000-02-29 09:00:00"
    assert assets._exact(951_782_400_007) == "2000-02-29 09:00:00.007"


@pytest.mark.parametrize("line", [",", ", ,", "home", "home Seoul", "home 37.5 127.0"])
def test_a_line_that_is_no_place_names_the_field(line: str) -> None:
    with pytest.raises(InvalidField) as refused:
        records.form_places({"places": line})
    assert refused.value.field == "places"
