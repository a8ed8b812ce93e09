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


# Where it is known what the workers have on their disks: by member and task, the number of its last commit.

disks = st.dictionaries(
    st.sampled_from("abcdx"), st.dictionaries(st.integers(0, 11).map("t{:02}".format), st.integers(1, 3)), max_size=5
)


def shares(before: str, members: str, disks: dict[str, dict[str, int]]) -> dict[str, tuple[list[str], list[str]]]:
    leases = rows(before)
    return {me: share([lease.task for lease in leases], list(members), me, leases, NOW, disks) for me in members}


def test_a_free_task_goes_where_its_newest_state_is() -> None:
    near = {"a": {"t00": 3}, "b": {"t00": 5, "t01": 1}, "x": {"t01": 9}}
    assert shares("..", "ab", near) == {"a": (["t01"], []), "b": (["t00"], [])}
    # The bigger share, too, where both hold as much.
    assert shares(".", "ab", {"b": {"t00": 1}}) == {"a": ([], []), "b": (["t00"], [])}
    # Not beyond the share: b is full, and of those with room c has the newest.
    assert shares("bb.", "abc", {"b": {"t02": 9}, "c": {"t02": 1}})["c"] == (["t02"], [])


@given(owners, living, disks)
def test_disks_change_neither_balance_nor_what_is_given_up(
    before: str, members: str, disks: dict[str, dict[str, int]]
) -> None:
    found, blind = shares(before, members, disks), shares(before, members, {})
    free = [f"t{n:02}" for n, owner in enumerate(before) if owner not in members]
    assert sorted(task for claims, _ in found.values() for task in claims) == free
    for member in members:
        # Who holds equally many may come first or not, and each of them keeps what the other would.
        assert abs(len(found[member][1]) - len(blind[member][1])) <= 1
    assert sum(len(releases) for _, releases in found.values()) == sum(len(releases) for _, releases in blind.values())
    loads = [before.count(member) + len(found[member][0]) - len(found[member][1]) for member in members]
    assert max(loads) <= ceil(len(before) / len(members))


@given(owners, living, disks)
def test_nobody_is_passed_over_who_has_newer_state_and_room(
    before: str, members: str, disks: dict[str, dict[str, int]]
) -> None:
    found = shares(before, members, disks)
    for member in members:
        room = len(before) // len(members) - before.count(member) - len(found[member][0])
        for other in members if room > 0 else "":
            for task in found[other][0]:
                ours, theirs = disks.get(member, {}).get(task, 0), disks.get(other, {}).get(task, 0)
                assert ours <= theirs, "it is not where its newest state is, and that one has room"


@given(owners, living, st.randoms())
def test_the_order_in_which_things_are_listed_does_not_matter(before: str, members: str, random: Random) -> None:
    leases = rows(before)
    tasks, listed = [lease.task for lease in leases], list(members)
    expected = [share(tasks, listed, me, leases, NOW) for me in members]
    for some in (tasks, listed, leases):
        random.shuffle(some)
    assert [share(tasks, listed, me, leases, NOW) for me in members] == expected
