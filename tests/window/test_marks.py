"""How far a split is that several tasks send into.

Each story is drawn as what lies in the split, mark by mark: `A10` sender A has come to 10, `A10i` and all its inputs
are idle, `A10q` and they are silent, so that it goes by the clock. Below it the watermark after each mark, a dot being
no time at all.
"""

import re

import pytest

from flowkit.record import MIN_TIME
from flowkit.window import ACTIVE, IDLE, QUIET, MarkedSplit, Splits

STANDINGS = {"": ACTIVE, "i": IDLE, "q": QUIET}


def hear(splits: Splits, split: MarkedSplit, mark: str) -> None:
    """As a task does."""
    sender, at, standing = re.fullmatch(r"([A-Z])(\.|\d+)([iq]?)", mark).groups()  # type: ignore[union-attr]
    watermark = MIN_TIME if at == "." else int(at)
    split.hear(sender, watermark)
    splits.watermark()
    split.hear(sender, watermark, STANDINGS[standing])


def drawn(watermark: int) -> str:
    return "." if watermark == MIN_TIME else str(watermark)


STORIES = {
    "one sender": """
        A10 A20 A30
        10  20  30""",
    "the least of two": """
        A10 B5 A20 B15 B25
        .   5  5   15  20""",
    "one that has never spoken holds it": """
        A10 A20 A30 A40i
        .   .   .   .""",
    "one that has spoken without a time holds it": """
        A10 B. A20 B7
        .   .  .   7""",
    "it never goes back": """
        A10 B20 A5 B30
        .   10  10 10""",
    "an idle one does not hold it": """
        A10 B5 B5i A30 A40
        .   5  10  30  40""",
    "one that is idle and comes back behind the others does not take it back": """
        A10 B5 B5i A30 B6 B20 B31
        .   5  10  30  30 30  30""",
    "all idle: it holds where the last one came to": """
        A10 B5 A10i B8 B9i
        .   5  5    8  9""",
    "one that comes to a time and falls idle in the same commit": """
        A10 B5 A50i B20i
        .   5  5    20""",
    "idle from the start": """
        A.i B5 B9
        .   5  9""",
    "all idle without a time, then one speaks": """
        A.i B.i B9
        .   .   9""",
    "a silent one: those that go on still count": """
        A10 B5 A90q B7
        .   5  5    7""",
    "all silent: by the furthest clock, as if there were one task": """
        A10 B5 A90q B60q A95q
        .   5  5    90   95""",
    "silent beside one that never had anything": """
        A10 B.q A90q
        .   .   90""",
    "all silent, then one speaks": """
        A10 B5 A90q B60q B61 A96
        .   5  5    90   90  90""",
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_the_watermark_of_a_split_with_senders(story: str) -> None:
    marks, wanted = (line.split() for line in story.strip().splitlines())
    splits = Splits()
    split = splits.follow(MarkedSplit("s[0]", 0, "AB" if any("B" in mark for mark in marks) or "." in wanted else "A"))
    found = []
    for mark in marks:
        hear(splits, split, mark)
        found.append(drawn(split.watermark))
        assert drawn(splits.watermark()) == found[-1]
    assert found == wanted


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_restart_between_any_two_marks_changes_nothing(story: str) -> None:
    marks, wanted = (line.split() for line in story.strip().splitlines())
    senders = "AB" if any("B" in mark for mark in marks) or "." in wanted else "A"
    splits = Splits()
    found: list[str] = []
    split = splits.follow(MarkedSplit("s[0]", 0, senders))
    for mark in marks:
        saved = splits.save()
        splits = Splits()
        split = splits.follow(MarkedSplit("s[0]", 0, senders))
        splits.load(saved)
        assert drawn(split.watermark) == (found[-1] if found else ".")
        hear(splits, split, mark)
        found.append(drawn(splits.watermark()))
    assert found == wanted


def test_events_do_not_move_it_however_late_their_time() -> None:
    splits = Splits()
    split = splits.follow(MarkedSplit("s[0]", 0, "A"))
    split.high = 1_000
    assert splits.watermark() == MIN_TIME
    hear(splits, split, "A7")
    assert splits.watermark() == 7
    assert split.high - split.out_of_order - 1 < 7


def test_beside_an_ordinary_split_both_count() -> None:
    """Both count, drawn in time.

    marks        A50        A50i       A60
    topic   10        30          90
    task    .    10   30     30   90   60 is behind: 90
    """
    splits = Splits()
    split, topic = splits.follow(MarkedSplit("s[0]", 0, "A")), splits.add("t[0]", 0)
    topic.high = 11
    assert splits.watermark() == MIN_TIME
    hear(splits, split, "A50")
    assert splits.watermark() == 10
    topic.high = 31
    assert splits.watermark() == 30
    hear(splits, split, "A50i")
    topic.high = 91
    assert splits.watermark() == 90
    hear(splits, split, "A60")
    assert splits.watermark() == 90


def test_one_that_falls_idle_has_come_so_far_before() -> None:
    """The ordinary split fell idle first; what the task waits for is the sender alone, until it is idle too."""
    splits = Splits()
    split, topic = splits.follow(MarkedSplit("s[0]", 0, "A")), splits.add("t[0]", 0)
    topic.high = 11
    hear(splits, split, "A3")
    topic.idle = True
    hear(splits, split, "A50i")
    assert splits.watermark() == 50
    assert splits.standing() == IDLE


def test_senders_that_are_no_more_are_forgotten_and_new_ones_waited_for() -> None:
    splits = Splits()
    split = splits.follow(MarkedSplit("s[0]", 0, "AB"))
    for mark in ("A10", "B20"):
        hear(splits, split, mark)
    saved = splits.save()
    splits = Splits()
    split = splits.follow(MarkedSplit("s[0]", 0, "BC"))
    splits.load(saved)
    for mark, watermark in (("B30", 10), ("A99", 10), ("C15", 15), ("C40", 30)):
        hear(splits, split, mark)
        assert splits.watermark() == watermark


def test_how_a_task_stands() -> None:
    splits = Splits()
    a, b = splits.add("a", 0), splits.add("b", 0)
    assert splits.standing() == ACTIVE
    a.idle = True
    assert splits.standing() == ACTIVE
    b.idle = True
    assert splits.standing() == IDLE
    splits.by_clock = True
    assert splits.standing() == QUIET
    restored = Splits()
    restored.add("a", 0)
    restored.add("b", 0)
    restored.load(splits.save())
    assert restored.standing() == QUIET
