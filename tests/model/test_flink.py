"""The oracle itself, on examples worked out by hand: one rule a test.

In the drawings time runs to the right, one column for the number of ms that the ruler says. Letters are events in their
windows, `W` is the watermark, `!` a firing. An event's value is its place in the order of arrival, from 0.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.depth import examples
from tests.model.flink import BEGINNING_OF_TIME, END_OF_TIME, Event, Result, WindowSpec, covering, run, run_splits
from tests.model.strategies import Case, cases, events, windows


def at(*times: int, key: str = "a") -> list[Event]:
    """Events of one key, their values counting from 0."""
    return [(key, time, value) for value, time in enumerate(times)]


def fired(result: Result) -> list[tuple[int, str, str, int, int, list[float]]]:
    """(step, pane, key, start, end, values) of each firing."""
    return [(step, *closed) for step, closed in zip(result.steps, result.closed, strict=True)]


# --- which windows cover a time ---------------------------------------------------------------------------------------


def test_tumbling_windows_are_half_open_and_go_on_before_1970() -> None:
    # -20       -10         0         10
    #  [---------)[---------)[---------)
    #           ^ -11      ^ -1 ^0   ^9
    spec = ("tumbling", 10, 0)
    assert covering(spec, -11) == [(-20, -10)]
    assert covering(spec, -10) == [(-10, 0)]
    assert covering(spec, -1) == [(-10, 0)]
    assert covering(spec, 0) == [(0, 10)]
    assert covering(spec, 9) == [(0, 10)]
    assert covering(spec, 10) == [(10, 20)]


@pytest.mark.parametrize("offset", [3, 13, -7])
def test_an_offset_shifts_the_grid_and_counts_modulo_the_size(offset: int) -> None:
    # -7         3         13
    #  [---------)[---------)
    spec = ("tumbling", 10, offset)
    assert covering(spec, 2) == [(-7, 3)]
    assert covering(spec, 3) == [(3, 13)]
    assert covering(spec, -8) == [(-17, -7)]


def test_sliding_windows_overlap_also_where_every_does_not_divide_the_size() -> None:
    # -8   -4    0    4    8    12
    #  [---------)                    10 ms, every 4
    #       [----------)
    #            [----------)
    #                 [----------)
    #             ^1      ^5
    spec = ("sliding", 10, 4, 0)
    assert covering(spec, 1) == [(0, 10), (-4, 6), (-8, 2)]
    assert covering(spec, 2) == [(0, 10), (-4, 6)]
    assert covering(spec, -5) == [(-8, 2), (-12, -2)]
    assert covering(("sliding", 10, 5, 2), 2) == [(2, 12), (-3, 7)]


def test_sliding_windows_with_every_above_the_size_leave_gaps() -> None:
    # -10   -6    0    4     10   14
    #  [----)     [----)     [----)
    spec = ("sliding", 4, 10, 0)
    assert covering(spec, 3) == [(0, 4)]
    assert covering(spec, 4) == []
    assert covering(spec, 9) == []
    assert covering(spec, -7) == [(-10, -6)]
    assert covering(spec, -6) == []


def test_cumulative_windows_share_a_start_and_grow_by_a_step() -> None:
    # 1         11        21        31
    # [---------)
    # [-------------------)
    # [-----------------------------)
    #                ^ 15: the second and the third
    spec = ("cumulative", 10, 30, 1)
    assert covering(spec, 1) == [(1, 11), (1, 21), (1, 31)]
    assert covering(spec, 10) == [(1, 11), (1, 21), (1, 31)]
    assert covering(spec, 11) == [(1, 21), (1, 31)]
    assert covering(spec, 15) == [(1, 21), (1, 31)]
    assert covering(spec, 30) == [(1, 31)]
    assert covering(spec, 0) == [(-29, 1)]


# --- watermark and firing ---------------------------------------------------------------------------------------------


def test_a_window_fires_in_the_step_in_which_the_watermark_reaches_its_end_less_one() -> None:
    # 0         10
    # [a   a    )a        watermark after 10: 10 - 0 - 1 = 9 = end - 1, so [0, 10) fires at event 2
    result = run(at(1, 5, 10), window=("tumbling", 10, 0))
    assert fired(result) == [(2, "on_time", "a", 0, 10, [0, 1]), (3, "on_time", "a", 10, 20, [2])]
    assert result.watermarks == [0, 4, 9]


def test_out_of_orderness_holds_the_watermark_back() -> None:
    # 0         10   15
    # [a        )b   )c        out of order by 5: after 14 W = 8, after 15 W = 9
    #        d                 the event at 7 still counts
    result = run(at(1, 14, 7, 15), window=("tumbling", 10, 0), out_of_order=5, bounded=False)
    assert fired(result) == [(3, "on_time", "a", 0, 10, [0, 2])]
    assert result.watermarks == [-5, 8, 8, 9]


def test_an_input_that_goes_on_leaves_windows_open() -> None:
    assert run(at(1, 5), window=("tumbling", 10, 0), bounded=False).closed == []


def test_the_end_of_the_input_fires_everything_in_its_last_step() -> None:
    result = run(at(-15, 5), window=("tumbling", 10, 0), out_of_order=100)
    assert fired(result) == [(2, "on_time", "a", -20, -10, [0]), (2, "on_time", "a", 0, 10, [1])]


def test_windows_of_one_step_fire_by_end_and_then_by_the_bytes_of_the_key() -> None:
    # The keys in UTF-8: "B" 42, "a" 61, "aa" 61 61, "é" c3 a9.
    stream = [("é", 1, 0), ("aa", 1, 1), ("a", 11, 2), ("B", 1, 3), ("a", 1, 4)]
    result = run(stream, window=("tumbling", 10, 0), out_of_order=50)
    order = [(closed.end, closed.key) for closed in result.closed]
    assert order == [(10, "B"), (10, "a"), (10, "aa"), (10, "é"), (20, "a")]


# --- late records -----------------------------------------------------------------------------------------------------


def test_without_lateness_a_record_of_a_fired_window_is_late() -> None:
    # 0         10
    # [a        )b     W = 9 after the event at 10
    #          c       the one at 9 is too late
    result = run(at(1, 10, 9), window=("tumbling", 10, 0))
    assert result.late == [("a", 9, 2)]
    assert result.delivered == [("a", 1, 0), ("a", 10, 1)]
    assert fired(result)[0] == (1, "on_time", "a", 0, 10, [0])


def test_an_old_record_of_an_open_window_is_not_late() -> None:
    # 0         10
    # [c      a )      W = 8 after the event at 9: behind the watermark, but its window is open
    result = run(at(9, 1), window=("tumbling", 10, 0))
    assert result.late == []
    assert fired(result) == [(2, "on_time", "a", 0, 10, [0, 1])]


def test_within_the_lateness_each_record_fires_its_window_again_at_once() -> None:
    # 0         10   15
    # [a        )b   |      lateness 5: kept until W >= 14
    #   c d                 two late panes, each with all values so far
    result = run(at(1, 10, 2, 4), window=("tumbling", 10, 0), allowed_lateness=5, bounded=False)
    assert fired(result) == [
        (1, "on_time", "a", 0, 10, [0]),
        (2, "late", "a", 0, 10, [0, 2]),
        (3, "late", "a", 0, 10, [0, 2, 3]),
    ]


@pytest.mark.parametrize("time,late", [(14, False), (15, True)])
def test_the_state_goes_when_the_watermark_reaches_the_end_less_one_plus_the_lateness(time: int, late: bool) -> None:
    # end - 1 + lateness = 14: W = 13 after the event at 14, W = 14 after the event at 15
    result = run(at(1, time, 2), window=("tumbling", 10, 0), allowed_lateness=5)
    assert bool(result.late) is late


def test_a_window_that_nobody_opened_in_time_has_only_a_late_pane() -> None:
    # 0         10
    # [  b      )a      W = 9 before b comes; [0, 10) had no value and did not fire on time
    result = run(at(10, 3), window=("tumbling", 10, 0), allowed_lateness=5, bounded=False)
    assert fired(result) == [(1, "late", "a", 0, 10, [1])]


def test_a_record_in_time_for_one_of_its_sliding_windows_counts_there_only() -> None:
    # 0    5    10   15
    # [---------)          W = 9 after the event at 10: over
    #      [---------)     still open
    #         b a
    result = run(at(10, 8), window=("sliding", 10, 5, 0))
    assert result.late == []
    assert [tuple(closed) for closed in result.closed] == [
        ("on_time", "a", 5, 15, [0, 1]),
        ("on_time", "a", 10, 20, [0]),
    ]


def test_one_late_record_fires_several_windows_by_their_ends() -> None:
    # -5   0    5    10   15   20
    #  [---------)                   over and dropped: 4 + 8 <= 13
    #       [---------)              fires again
    #            [---------)         W = 13: open until 14
    #              b   a
    result = run(at(14, 6, 1), window=("sliding", 10, 5, 0), allowed_lateness=8, bounded=False)
    assert fired(result) == [(1, "late", "a", 0, 10, [1]), (2, "late", "a", 0, 10, [1, 2])]
    assert result.late == []


def test_a_record_that_no_window_covers_is_late_only_by_its_own_time() -> None:
    # 0    4     10   14
    # [----)     [----)
    #        ^6             with W = 5: 6 > 5, no window and not late; with W = 6: late
    spec = ("sliding", 4, 10, 0)
    assert run(at(6, 6), window=spec).late == []
    assert run(at(7, 6), window=spec).late == [("a", 6, 1)]
    assert run(at(7, 6), window=spec, allowed_lateness=1).late == []
    assert run(at(6, 6), window=spec).closed == []
    assert run(at(6, 6), window=spec).delivered == at(6, 6)


def test_delivered_late_records_are_late_all_the_same() -> None:
    result = run(at(1, 10, 9), window=("tumbling", 10, 0), late="deliver")
    assert result.late == [("a", 9, 2)]
    assert result.delivered == at(1, 10, 9)
    assert result.closed == run(at(1, 10, 9), window=("tumbling", 10, 0)).closed


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_sessions_that_touch_are_one() -> None:
    # 50        60        70
    # [a--------)[b--------)      gap 10: the event at 60 comes before the watermark moves to 59, and joins
    #                       [c    71 > 70 does not touch
    result = run(at(50, 60, 71), window=("session", 10))
    assert fired(result) == [(2, "on_time", "a", 50, 70, [0, 1]), (3, "on_time", "a", 71, 81, [2])]


def test_a_record_between_two_sessions_makes_them_one() -> None:
    # 0      5     10        20
    # [a-----)      [b-----)          gap 6, out of order by 50
    #       [c-----)
    result = run(at(0, 11, 5), window=("session", 6), out_of_order=50)
    assert fired(result) == [(3, "on_time", "a", 0, 17, [0, 1, 2])]


def test_a_session_that_has_fired_without_lateness_takes_no_more() -> None:
    # 50        60        70
    # [a--------)                 the event of b at 60 sets W = 59 and closes it
    #            [a--------)      a session of its own
    stream = [("a", 50, 0), ("b", 60, 1), ("a", 60, 2), ("a", 49, 3)]
    result = run(stream, window=("session", 10))
    assert fired(result) == [
        (1, "on_time", "a", 50, 60, [0]),
        (4, "on_time", "a", 60, 70, [2]),
        (4, "on_time", "b", 60, 70, [1]),
    ]
    assert result.late == [("a", 49, 3)]  # [49, 59) touches no open session of a, and 58 <= W


def test_a_session_is_judged_late_after_it_has_merged() -> None:
    # 40        50        60
    #           [a--------)       open: W = 55 (event of b at 56)
    # [c--------)                 [40, 50) alone would be over, but it touches an open one
    stream = [("a", 50, 0), ("b", 56, 1), ("a", 40, 2), ("a", 29, 3)]
    result = run(stream, window=("session", 10))
    assert result.late == [("a", 29, 3)]  # [29, 39) touches nothing
    assert [tuple(closed) for closed in result.closed] == [
        ("on_time", "a", 40, 60, [0, 2]),
        ("on_time", "b", 56, 66, [1]),
    ]


def test_a_fired_session_within_the_lateness_fires_late_or_if_it_grows_on_time_again() -> None:
    # 50        60    66  70
    # [a--------)|        |       W = 62 after the event of b at 63; lateness 20 keeps the session
    #  c                          50: [50, 60) again, 59 <= 62: late, at once
    #       d------------)        56: [50, 66), 65 > 62: on time when W reaches 65
    stream = [("a", 50, 0), ("b", 63, 1), ("a", 50, 2), ("a", 56, 3), ("b", 66, 4)]
    result = run(stream, window=("session", 10), allowed_lateness=20, bounded=False)
    assert fired(result) == [
        (1, "on_time", "a", 50, 60, [0]),
        (2, "late", "a", 50, 60, [0, 2]),
        (4, "on_time", "a", 50, 66, [0, 2, 3]),
    ]


# --- count and global -------------------------------------------------------------------------------------------------


def test_a_count_window_fires_with_its_nth_event_of_a_key_and_an_unfinished_one_never() -> None:
    # a a | a       a's first two; the third waits for ever
    stream = [("a", 9, 0), ("b", 1, 1), ("a", 3, 2), ("a", 4, 3)]
    result = run(stream, window=("count", 2))
    assert fired(result) == [(2, "on_time", "a", 9, 10, [0, 2])]  # start: the first event's time, end: the highest + 1
    assert result.late == []


def test_a_sliding_count_window_holds_the_last_n_at_every_e() -> None:
    # index  0 1 2 3 4 5
    #       [0 1]              k = 1: [-1, 2)
    #         [1 2 3]          k = 2: [1, 4)
    #             [3 4 5]      k = 3: [3, 6)
    result = run(at(10, 20, 30, 40, 50, 60), window=("count", 3, 2))
    assert fired(result) == [
        (1, "on_time", "a", 10, 21, [0, 1]),
        (3, "on_time", "a", 20, 41, [1, 2, 3]),
        (5, "on_time", "a", 40, 61, [3, 4, 5]),
    ]


def test_a_sliding_count_window_may_skip_events() -> None:
    # index  0 1 2 3 4 5
    #           [2]   [5]      n = 1, every 3
    result = run(at(10, 20, 30, 40, 50, 60), window=("count", 1, 3))
    assert [closed.values for closed in result.closed] == [[2], [5]]


def test_the_global_window_fires_at_the_end_and_knows_no_late_record() -> None:
    result = run(at(10**12, -(10**12)), window=("global",))
    assert fired(result) == [(2, "on_time", "a", BEGINNING_OF_TIME, END_OF_TIME, [0, 1])]
    assert result.late == []


# --- early panes ------------------------------------------------------------------------------------------------------


def test_an_early_pane_comes_when_the_watermark_passes_a_multiple_of_the_distance() -> None:
    # 0         10        20        30
    # [a         |b        |         )c    early 10: at W >= 9 and at W >= 19, on time at W >= 29
    result = run(at(1, 9, 10, 12, 21, 30), window=("tumbling", 30, 0), early=10, bounded=False)
    assert fired(result) == [
        (2, "early", "a", 0, 30, [0, 1, 2]),
        (4, "early", "a", 0, 30, [0, 1, 2, 3, 4]),
        (5, "on_time", "a", 0, 30, [0, 1, 2, 3, 4]),
    ]


def test_an_unchanged_window_gives_no_early_pane() -> None:
    # 0         10        20        30
    # [a         |         |         )     b's events move the watermark past 9 and then past 19
    stream = [("a", 1, 0), ("b", 42, 1)]
    result = run([("a", 1, 0), ("b", 12, 1), ("b", 22, 2)], window=("tumbling", 30, 0), early=10, bounded=False)
    assert fired(result) == [
        (1, "early", "a", 0, 30, [0]),
        (1, "early", "b", 0, 30, [1]),
        (2, "early", "b", 0, 30, [1, 2]),
    ]
    # and where one step closes the window too, there is only the pane on time
    assert fired(run(stream, window=("tumbling", 30, 0), early=10, bounded=False)) == [
        (1, "on_time", "a", 0, 30, [0]),
        (1, "early", "b", 30, 60, [1]),
    ]


def test_several_multiples_in_one_step_give_one_early_pane() -> None:
    # 0         10        20        30        40
    # [a         |         |    b    |         )     W goes from 0 to 24
    result = run(at(1, 25), window=("tumbling", 40, 0), early=10, bounded=False)
    assert fired(result) == [(1, "early", "a", 0, 40, [0, 1])]


def test_windows_no_longer_than_the_distance_give_no_early_pane() -> None:
    stream = at(1, 5, 9)
    assert run(stream, window=("tumbling", 10, 0), early=10, bounded=False).closed == []
    assert fired(run(at(1, 9, 10), window=("tumbling", 11, 0), early=10, bounded=False)) == [
        (2, "early", "a", 0, 11, [0, 1, 2])
    ]


def test_a_growing_session_gives_early_panes_by_its_own_start() -> None:
    # 3       11  13         23
    # [a-------b--|)                gap 8; early 10: at W >= 12
    result = run(at(3, 11, 13), window=("session", 8), early=10, bounded=False)
    assert fired(result) == [(2, "early", "a", 3, 21, [0, 1, 2])]


# --- several splits ---------------------------------------------------------------------------------------------------


def test_splits_are_merged_by_time_and_equal_times_by_the_order_of_the_splits() -> None:
    # x: 1    5    5
    # y: 1 3  5        z: nothing
    splits = {"x": at(1, 5, 5), "y": at(1, 3, 5, key="b"), "z": list[Event]()}
    result = run_splits(splits, window=("tumbling", 10, 0))
    assert result.events == [("a", 1, 0), ("b", 1, 0), ("b", 3, 1), ("a", 5, 1), ("a", 5, 2), ("b", 5, 2)]


def test_a_split_is_taken_in_its_own_order_so_that_a_late_head_waits_behind_an_early_one() -> None:
    # x: 20 2      the event at 2 is seen only when 20 has been taken
    # y: 10
    result = run_splits({"x": at(20, 2), "y": at(10, key="b")}, window=("tumbling", 100, 0))
    assert [time for _, time, _ in result.events] == [10, 20, 2]


def test_the_slowest_split_holds_the_watermark_until_its_end() -> None:
    # x: 1      12      25            W of x:  0, 11, 24
    # y:    3       14                W of y:  2, 13, gone
    # task:  -, 2, 2 -> 11 with 14, then y is at its end and W goes to x's own
    result = run_splits({"x": at(1, 12, 25), "y": at(3, 14, key="b")}, window=("tumbling", 10, 0))
    assert result.watermarks == [BEGINNING_OF_TIME, 0, 2, 11, 24]
    assert fired(result) == [
        (3, "on_time", "a", 0, 10, [0]),
        (3, "on_time", "b", 0, 10, [0]),
        (4, "on_time", "a", 10, 20, [1]),
        (4, "on_time", "b", 10, 20, [1]),
        (5, "on_time", "a", 20, 30, [2]),
    ]


def test_the_end_of_a_split_lets_the_watermark_go_before_the_next_event() -> None:
    # x: 1 15 8      W of x: 0, 14, 14        y: 2, then its end
    # task: -, 0 -> y ends: 0; 14 with the event at 15; the one at 8 is late
    result = run_splits({"x": at(1, 15, 8), "y": at(2, key="b")}, window=("tumbling", 10, 0))
    assert result.late == [("a", 8, 2)]
    # With y going on at 16, it holds W at 1, and the event at 8 is in time.
    result = run_splits({"x": at(1, 15, 8), "y": at(2, 16, key="b")}, window=("tumbling", 10, 0))
    assert result.late == []


def test_the_disorder_may_differ_by_split() -> None:
    splits = {"x": at(1, 20), "y": at(2, 21, key="b")}
    result = run_splits(splits, window=("tumbling", 10, 0), out_of_order={"x": 0, "y": 15})
    assert result.watermarks == [BEGINNING_OF_TIME, -14, -14, 5]


# --- what has no meaning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "window",
    [("tumbling", 10), ("tumbling", 0, 0), ("cumulative", 4, 10, 0), ("count",), ("session", -1), ("hopping", 1, 1)],
)
def test_a_window_without_meaning_is_refused(window: WindowSpec) -> None:
    with pytest.raises(ValueError, match="window"):
        run([], window=window)


def test_early_panes_of_count_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="early"):
        run([], window=("count", 2), early=10)


# --- laws, on any input -----------------------------------------------------------------------------------------------


@examples(150)
@given(stream=events(), window=windows("tumbling", "sliding", "cumulative", "global"))
def test_with_enough_allowance_for_disorder_the_windows_are_a_plain_grouping(
    stream: list[Event], window: WindowSpec
) -> None:
    groups: dict[tuple[int, bytes, int], list[float]] = {}
    for key, time, value in stream:
        for start, end in covering(window, time):
            groups.setdefault((end, key.encode(), start), []).append(value)
    result = run(stream, window=window, out_of_order=10_000)
    assert result.late == []
    assert [((c.end, c.key.encode(), c.start), c.values) for c in result.closed] == sorted(groups.items())


@examples(150)
@given(stream=events(), gap=st.integers(1, 40))
def test_with_enough_allowance_for_disorder_sessions_are_the_runs_without_a_gap(stream: list[Event], gap: int) -> None:
    expected: list[tuple[int, bytes, int]] = []
    for key in {key for key, _, _ in stream}:
        times = sorted(time for k, time, _ in stream if k == key)
        starts = [t for before, t in zip([None, *times], times, strict=False) if before is None or t - before > gap]
        lasts = [t for t, after in zip(times, [*times[1:], None], strict=True) if after is None or after - t > gap]
        expected += [(last + gap, key.encode(), start) for start, last in zip(starts, lasts, strict=True)]
    result = run(stream, window=("session", gap), out_of_order=10_000)
    assert [(c.end, c.key.encode(), c.start) for c in result.closed] == sorted(expected)
    assert sum(len(c.values) for c in result.closed) == len(stream)


@examples(150)
@given(case=cases())
def test_windows_fire_once_on_time_and_only_late_after_it(case: Case) -> None:
    result = run(case.events, **case.settings)
    seen: dict[tuple[str, int, int], list[str]] = {}
    for closed in result.closed:
        if case.settings["window"][0] != "count":
            seen.setdefault((closed.key, closed.start, closed.end), []).append(closed.pane)
    for panes in seen.values():
        assert panes == sorted(panes, key=["early", "on_time", "late"].index)
        assert panes.count("on_time") <= 1
    order = [(step, c.end, c.key.encode()) for step, c in zip(result.steps, result.closed, strict=True)]
    assert order == sorted(order)


@examples(100)
@given(case=cases())
def test_a_single_split_is_a_run(case: Case) -> None:
    if case.settings["bounded"]:
        rest = {name: value for name, value in case.settings.items() if name != "bounded"}
        assert run_splits({"input": case.events}, **rest) == run(case.events, **case.settings)  # type: ignore[arg-type]
