"""Workers that look at the same leases share the tasks without talking: balanced, sticky, never two owners.

Each story below is drawn as "owner of task 0, 1, 2, …"; a dot is a task that nobody owns.
"""

from dataclasses import dataclass
from math import ceil
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.source.placement import share

NOW = 1_000


@dataclass
class Row:
    """A lease."""

    task: str
    owner: str
    expires_ms: int = NOW + 1


def rows(owners: str) -> list[Row]:
    return [Row(f"t{number:02}", "" if owner == "." else owner) for number, owner in enumerate(owners)]


def look(owners: str, members: str) -> str:
    """The owners after every member has looked at `owners` once and done what it has to."""
    leases = rows(owners)
    after = list(owners)
    for me in members:
        claims, releases = share([lease.task for lease in leases], list(members), me, leases, NOW)
        for task in releases:
            assert owners[int(task[1:])] == me, "released what it does not own"
            after[int(task[1:])] = "."
        for task in claims:
            assert owners[int(task[1:])] not in members, "claimed what another one owns"
            assert after[int(task[1:])] not in members, "two have claimed the same task"
            after[int(task[1:])] = me
    return "".join(after)


@pytest.mark.parametrize(
    ("before", "members", "after"),
    [
        ("......", "a", "aaaaaa"),
        ("......", "ab", "ababab"),
        ("aaaaaa", "abc", "aa...."),  # the over-full one releases; nobody takes what is still held
        ("aa....", "abc", "aabcbc"),
        ("aabcbc", "abc", "aabcbc"),  # balanced: nothing moves
        ("aabcbc", "ab", "aababb"),  # c is dead; b was as poor as a
        ("aaab", "ab", "aa.b"),
        ("aab", "ab", "aab"),  # the odd one stays where it is
        ("abb", "ab", "abb"),
        ("", "ab", ""),
        (".", "abc", "a"),
        ("z.", "ab", "ab"),  # z is no member
    ],
)
def test_one_look(before: str, members: str, after: str) -> None:
    assert look(before, members) == after


def test_a_lease_that_has_expired_holds_nothing() -> None:
    leases = [Row("t0", "a", NOW), Row("t1", "a", NOW + 1)]
    assert share(["t0", "t1"], ["a", "b"], "b", leases, NOW) == (["t0"], [])
    assert share(["t0"], ["a"], "a", leases[:1], NOW) == (["t0"], [])  # its owner, too, has to claim it again


def test_a_task_that_was_never_claimed_has_no_lease_and_is_free() -> None:
    assert share(["t0", "t1"], ["a"], "a", [], NOW) == (["t0", "t1"], [])


def test_tasks_that_are_no_more_are_released() -> None:
    assert share(["t0"], ["a"], "a", [Row("t0", "a"), Row("old", "a")], NOW) == ([], ["old"])


def test_one_who_is_no_member_releases_all_and_claims_nothing() -> None:
    assert share(["t0", "t1"], ["b"], "a", rows("a."), NOW) == ([], ["t00"])
    assert share(["t0"], [], "a", [], NOW) == ([], [])


# Up to twelve tasks, owned by anybody alive or dead or nobody.
owners = st.text("abcdxyz.", max_size=12)
living = st.sets(st.sampled_from("abcd"), min_size=1).map(lambda members: "".join(sorted(members)))


@given(owners, living)
def test_two_looks_and_all_is_balanced_and_stays_so(before: str, members: str) -> None:
    after = look(look(before, members), members)
    loads = [after.count(member) for member in members]
    assert sum(loads) == len(before), "a task is not owned"
    assert max(loads) - min(loads) <= 1
    assert look(after, members) == after


@given(owners, living)
def test_no_more_moves_than_balance_needs(before: str, members: str) -> None:
    after = look(look(before, members), members)
    loads = sorted((before.count(member) for member in members), reverse=True)
    each, extra = divmod(len(before), len(members))
    surplus = sum(max(0, load - each - (rank < extra)) for rank, load in enumerate(loads))
    moved = sum(1 for old, new in zip(before, after, strict=True) if old in members and old != new)
    assert moved == surplus


@given(owners, living, st.data())
def test_looks_one_by_one_end_balanced_too(before: str, members: str, data: st.DataObject) -> None:
    now = before
    for _ in range(4):
        for me in data.draw(st.permutations(list(members))):
            leases = rows(now)
            claims, releases = share([lease.task for lease in leases], list(members), me, leases, NOW)
            now = "".join(
                me if f"t{n:02}" in claims else "." if f"t{n:02}" in releases else owner for n, owner in enumerate(now)
            )
    assert all(len(now) // len(members) <= now.count(member) <= ceil(len(now) / len(members)) for member in members)


@given(owners, living, st.randoms())
def test_the_order_in_which_things_are_listed_does_not_matter(before: str, members: str, random: Random) -> None:
    leases = rows(before)
    tasks, listed = [lease.task for lease in leases], list(members)
    expected = [share(tasks, listed, me, leases, NOW) for me in members]
    for some in (tasks, listed, leases):
        random.shuffle(some)
    assert [share(tasks, listed, me, leases, NOW) for me in members] == expected
