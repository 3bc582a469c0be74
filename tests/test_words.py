"""Numbers and values in words."""

from __future__ import annotations

from comkd_ray.words import DASH, count, counted, duration, gap, percent, plain, plain_count, shown, signed

THIN = "\u202f"  # the space of `77.2 %`


def test_shown_uses_the_words_of_yaml() -> None:
    values = (True, None, 0.00012345, 3, "sqrt_width")
    assert [shown(value) for value in values] == ["true", DASH, "0.0001234", "3", "sqrt_width"]


def test_percentages_and_differences() -> None:
    assert (percent(77.249), percent(None), plain(77.25, 2)) == (f"77.2{THIN}%", DASH, "77.25")
    assert [signed(v) for v in (0.649, -0.649, 0.01, -0.01, None)] == [
        "+0.6",
        "\u22120.6",
        "0.0",
        "0.0",
        DASH,
    ]
    assert (gap(80.0, 78.0), gap(None, 78.0)) == ("+2.0", DASH)


def test_counts_and_durations() -> None:
    assert [counted(n, "arm") for n in (0, 1, 2)] == ["0 arms", "1 arm", "2 arms"]
    assert [count(n) for n in (12, 4_100, 86_192_640)] == ["12", "4.1 k", "86.2 M"]
    assert [plain_count(n) for n in (7.456, 99.9, 1268.4)] == ["7.46", "99.9", "1,268"]
    words = [duration(s).replace("\u00a0", " ") for s in (4.24, 59.97, 200, 3599.7, 7500)]
    assert words == ["4.2 s", "60.0 s", "3 min 20 s", "1 h 00 min", "2 h 05 min"]
