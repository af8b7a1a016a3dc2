"""Test support: attacks by position jumps, by accuracies, by clocks, by silence and by other devices."""

from __future__ import annotations

from tests.support.geofence.spoofing.scene import AWAY_M, END_S, Report, Said, Scene, Unusable

FAR_M = 20_000.0


def far(scene: Scene) -> list[Report]:
    """20 km away from one report to the next, and there to the end."""
    return [*scene.stay(FAR_M)]


def near(scene: Scene) -> list[Report]:
    """1 km away from one report to the next."""
    return [*scene.stay(1000)]


def below_the_speed_of_a_jump(scene: Scene) -> list[Report]:
    """1.4 km in 15 s: 93 m/s, where a jump begins at 100 m/s."""
    return [*scene.stay(AWAY_M + 1400)]


def steps_below_the_speed_of_a_train(scene: Scene) -> list[Report]:
    """84 m/s from one report to the next, from standing."""
    return [*scene.go(84, FAR_M)]


def steps_of_a_receivers_error(scene: Scene) -> list[Report]:
    """290 m more at each report: less than the error that a receiver makes without saying so."""
    return [*scene.go(290 / scene.every_s, FAR_M)]


def train_speed_at_once(scene: Scene) -> list[Report]:
    """60 m/s from the first second, for 2 minutes: trains are as fast, but gain it in minutes."""
    return [*scene.go(60, AWAY_M + 60 * 120)]


def to_the_sea(scene: Scene) -> list[Report]:
    """60 km west, where there is no land."""
    return [*scene.stay(0, -60_000)]


def back_and_forth(scene: Scene) -> list[Report]:
    """Far away for five reports, where he is for two, in turn."""
    return [scene.noisy(at_s, AWAY_M if number % 7 in (5, 6) else FAR_M) for number, at_s in enumerate(scene.times())]


def between_two_far_places(scene: Scene) -> list[Report]:
    """20 km north and 20 km south in turn."""
    return [scene.noisy(at_s, FAR_M if number % 2 else -FAR_M) for number, at_s in enumerate(scene.times())]


def a_plausible_way_far_from_here(scene: Scene) -> list[Report]:
    """20 km away at once, and from there on a plausible drive."""
    return [*scene.go(12, 60_000, start_m=FAR_M)]


def after_a_gap(scene: Scene) -> list[Report]:
    """Nothing for 150 s, then 30 km away."""
    return [*scene.stay(30_000, from_s=150)]


def after_a_long_gap(scene: Scene) -> list[Report]:
    """Nothing for 400 s, then 60 km away."""
    return [*scene.stay(60_000, from_s=400)]


def after_short_gaps(scene: Scene) -> list[Report]:
    """Five reports 20 km away, then 170 s of nothing, again and again."""
    return [
        claim
        for from_s in range(0, END_S, 245)
        for claim in scene.stay(FAR_M, from_s=from_s, until_s=from_s + 5 * scene.every_s)
    ]


def by_delayed_reports(scene: Scene) -> list[Report]:
    """20 km away since the last true position; each ten minutes of reports arrive together, the newest first."""
    return [
        claim._replace(at_s=upto_s + (upto_s - claim.at_s) / 1000, fix_s=claim.at_s)
        for upto_s in range(600, END_S + 1, 600)
        for claim in scene.stay(FAR_M, from_s=upto_s - 600, until_s=upto_s)
        if upto_s < END_S
    ]


def with_one_report_id(scene: Scene) -> list[Report]:
    """20 km away, each time under the same report id."""
    return [*scene.stay(FAR_M, report_id="the-same")]


def with_ids_of_true_reports(scene: Scene) -> list[Report]:
    """The report ids and times of the true reports of the last half hour, 20 km away, then new ones from there."""
    true = [claim for claim in scene.history if claim.at_s >= -600]
    forged = [
        scene.noisy(number / 10, FAR_M, fix_s=claim.at_s, report_id=claim.report_id)
        for number, claim in enumerate(true)
    ]
    return [*forged, *scene.stay(FAR_M, from_s=scene.every_s)]


def rewritten_past(scene: Scene) -> list[Report]:
    """Late reports between the true ones claim a drive away in the last ten minutes, then he stands where it ended."""
    began_s = -600
    drive = [
        scene.noisy((at_s - began_s) / 600, AWAY_M + 20 * (at_s - began_s), fix_s=at_s)
        for at_s in range(began_s + 7, 0, 15)
    ]
    return [*drive, *scene.stay(AWAY_M + 12_000, from_s=scene.every_s)]


# ── accuracies ───────────────────────────────────────────────────────────────────────────────────────────────────────


def stated_one_metre(scene: Scene) -> list[Report]:
    """1 km away at once, with an accuracy of 1 m."""
    return [*scene.stay(1000, accuracy_m=1)]


def stated_ten_kilometres(scene: Scene) -> list[Report]:
    """20 km away at once, each with an accuracy of 10 km."""
    return [*scene.stay(FAR_M, accuracy_m=10_000)]


def growing_accuracy(scene: Scene) -> list[Report]:
    """Accuracy grows to 10 km within a minute; then he is 20 km away, and it shrinks."""
    return [
        scene.noisy(at_s, AWAY_M if number < 6 else FAR_M, accuracy_m=_growing_m(number))
        for number, at_s in enumerate(scene.times())
    ]


def _growing_m(number: int) -> float:
    return min(10_000, 5 * 4.0**number) if number < 10 else max(5, 10_000 / 2 ** (number - 9))


def growing_accuracy_near(scene: Scene) -> list[Report]:
    """Accuracy grows to 1 km within 30 s; then he is 2.4 km away, and after 15 s more it is 5 m again."""
    accuracies_m = (5, 60, 1000, 1000)
    return [
        scene.noisy(
            at_s, AWAY_M if number < 3 else 2400, accuracy_m=accuracies_m[number] if number < len(accuracies_m) else 5
        )
        for number, at_s in enumerate(scene.times())
    ]


def alternating_accuracy(scene: Scene) -> list[Report]:
    """1 m and 10 km in turn, 20 km away."""
    return [
        scene.noisy(at_s, FAR_M, accuracy_m=10_000 if number % 2 else 1) for number, at_s in enumerate(scene.times())
    ]


def vague_steps(scene: Scene) -> list[Report]:
    """1.5 km more at each report, each with an accuracy of 900 m, up to 20 km; then sharp."""
    return [
        scene.noisy(at_s, min(FAR_M, AWAY_M + 1500 * (number + 1)), accuracy_m=900 if number < 14 else 5)
        for number, at_s in enumerate(scene.times())
    ]


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def clock_ahead(scene: Scene) -> list[Report]:
    """20 km away, by a clock that is 110 s ahead."""
    return [claim._replace(fix_s=claim.at_s + 110) for claim in scene.stay(FAR_M)]


def clock_behind(scene: Scene) -> list[Report]:
    """20 km away, by a clock that is 20 minutes behind and then right."""
    late = scene.stay(FAR_M, until_s=600)
    return [
        *(claim._replace(fix_s=claim.at_s - 1200.5) for claim in late),
        *scene.stay(FAR_M, from_s=600),
    ]


def clock_stepping(scene: Scene) -> list[Report]:
    """20 km away, by a clock that is 100 s ahead, right, and 100 s behind in turn."""
    return [
        claim._replace(fix_s=claim.at_s + (100, 0, -100)[number % 3]) for number, claim in enumerate(scene.stay(FAR_M))
    ]


def clock_beyond_use(scene: Scene) -> list[Report]:
    """Five minutes of reports with a clock that is hours ahead, then 40 km away."""
    return [
        *(Unusable(at_s) for at_s in scene.times(until_s=300)),
        *scene.stay(40_000, from_s=300),
    ]


# ── silence, equipment and other devices ─────────────────────────────────────────────────────────────────────────────


def each_179_s(scene: Scene) -> list[Report]:
    """A position 20 km away each 179 s."""
    return [scene.noisy(at_s, FAR_M) for at_s in range(179, END_S, 179)]


def each_240_s(scene: Scene) -> list[Report]:
    """A position 30 km away each 240 s."""
    return [scene.noisy(at_s, 30_000) for at_s in range(240, END_S, 240)]


def single_claims_between_silences(scene: Scene) -> list[Report]:
    """Single positions 30 km away, with silences of 100 to 300 s."""
    found, at_s = [], 60.0
    while at_s < END_S:
        found.append(scene.noisy(at_s, 30_000))
        at_s += scene.rng.choice((100, 170, 200, 300))
    return [*found]


def on_the_charger(scene: Scene) -> list[Report]:
    """On the charger, 20 km away at once."""
    return [Said(2, "CHARGER_CONNECTED"), *scene.stay(FAR_M, from_s=15)]


def with_a_low_battery(scene: Scene) -> list[Report]:
    """Battery low, then a position 20 km away each 170 s."""
    return [
        Said(2, "BATTERY_LOW"),
        *(scene.noisy(at_s, FAR_M) for at_s in range(170, END_S, 170)),
    ]


def restarted(scene: Scene) -> list[Report]:
    """Starts, as after an update, and is 20 km away."""
    return [Said(60, "STARTED"), *scene.stay(FAR_M, from_s=75)]


def second_tag_far_away(scene: Scene) -> list[Report]:
    """His second tag is 20 km away; the one that he wears falls silent after 5 minutes."""
    return [
        *scene.stay(AWAY_M, until_s=300),
        *scene.stay(FAR_M, device_id="tag-2"),
    ]


def both_tags_jump(scene: Scene) -> list[Report]:
    """Both tags were 60 m away and jump to the same place."""
    return [*scene.stay(FAR_M), *scene.stay(FAR_M, device_id="tag-2")]


def her_phone_jumps(scene: Scene) -> list[Report]:
    """He stays; her phone is 20 km away at once."""
    return [*scene.stay(AWAY_M), *scene.stay(FAR_M, device_id="phone")]


def both_sides_jump(scene: Scene) -> list[Report]:
    """Near her home, receivers of both sides are moved: his 20 km north, hers 20 km south."""
    return [*scene.stay(FAR_M), *scene.stay(-FAR_M, device_id="phone")]
