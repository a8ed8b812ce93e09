"""Members of a group share out the tasks of their app: what the leader says, and what comes of it round by round."""

from random import Random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from flowkit.source.kafka_group import Assigned, Member, assign, sum_of
from tests.depth import examples

TASKS = [f"app/g/{n}" for n in range(7)]


def member(worker: str, *held: int, generation: int = 1) -> Member:
    return Member(worker, TASKS, [TASKS[n] for n in held], generation)


def test_what_is_to_be_given_up_is_told_for_whoever_comes_back_in_its_owners_place() -> None:
    given = assign({"1": member("a", *range(7)), "2": member("b")})
    assert given["1"] == Assigned(TASKS[:4], TASKS[4:], "a", sum_of(TASKS))
    assert given["2"] == Assigned([], [], "b", sum_of(TASKS))


def test_of_members_with_room_the_one_with_the_newest_state_gets_a_task() -> None:
    here, there = member("a", 0, 1, 2), member("b", 3, 4)
    here.disk, there.disk = {TASKS[5]: 70, TASKS[6]: 8}, {TASKS[5]: 60, TASKS[6]: 9}
    assert given_out({"1": here, "2": there}) == {"1": [0, 1, 2, 5], "2": [3, 4, 6]}


def test_members_of_before_there_were_disks_and_those_of_now_understand_each_other() -> None:
    """A rolling upgrade: both are arrays, and what is missing has a default."""
    told = msgspec.msgpack.encode(["a", TASKS, [], 1])
    assert msgspec.msgpack.decode(told, type=Member).disk == {}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([TASKS]), type=Assigned).releases == []


def given_out(members: dict[str, Member]) -> dict[str, list[int]]:
    return {id_: [TASKS.index(task) for task in mine.tasks] for id_, mine in assign(members).items()}


def test_the_first_member_gets_all_tasks() -> None:
    assert given_out({"1": member("a")}) == {"1": [0, 1, 2, 3, 4, 5, 6]}


def test_what_an_owner_has_to_give_up_goes_to_nobody_before_it_has_let_go() -> None:
    assert given_out({"1": member("a", *range(7)), "2": member("b")}) == {"1": [0, 1, 2, 3], "2": []}
    assert given_out({"1": member("a", 0, 1, 2, 3), "2": member("b")}) == {"1": [0, 1, 2, 3], "2": [4, 5, 6]}


def test_of_two_who_say_that_they_run_a_task_the_one_that_was_away_loses_it() -> None:
    away, here = member("a", 0, 1, 2, 3, generation=3), member("b", *range(7), generation=4)
    assert given_out({"1": away, "2": here}) == {"1": [], "2": [0, 1, 2, 3]}


def test_a_worker_that_is_in_the_group_twice_since_it_was_restarted_gets_nothing_twice() -> None:
    given = given_out({"1": member("a", 0, 1, 2, 3, generation=1), "2": member("a", generation=-1)})
    assert sorted(task for mine in given.values() for task in mine) == TASKS_NUMBERS
    assert given["1"] == [0, 1, 2, 3]


TASKS_NUMBERS = list(range(7))


@given(st.integers(0, 2**32))
@examples(200)
def test_rounds_end_with_every_task_at_one_member_whoever_comes_and_goes(seed: int) -> None:
    rng = Random(seed)
    held: dict[str, set[str]] = {"m0": set()}
    generations = dict.fromkeys(held, 0)
    came = 1
    for generation in range(1, 30):
        if rng.random() < 0.3:
            held[f"m{came}"], generations[f"m{came}"] = set(), -1
            came += 1
        if len(held) > 1 and rng.random() < 0.2:
            gone = rng.choice(sorted(held))  # dead: what it held is free
            del held[gone], generations[gone]
        _round(held, generations, generation)
    for generation in (30, 31, 32):
        before = {name: set(tasks) for name, tasks in held.items()}
        _round(held, generations, generation)
    assert held == before, "nothing moves once all is shared out"
    assert sorted(task for tasks in held.values() for task in tasks) == TASKS
    assert max(map(len, held.values())) - min(map(len, held.values())) <= 1


def _round(held: dict[str, set[str]], generations: dict[str, int], generation: int) -> None:
    disks = {name: {task: generation + len(name) for task in TASKS[int(name[1:]) % 5 :]} for name in held}
    members = {
        name: Member(f"w{name}", TASKS, sorted(tasks), generations[name], disks[name]) for name, tasks in held.items()
    }
    given = assign(members)
    told = [task for mine in given.values() for task in mine.tasks]
    assert len(told) == len(set(told)), "a task given to two"
    for name, mine in given.items():
        assert held[name] - set(mine.tasks) == set(mine.releases)
        for task in mine.tasks:
            assert not any(task in tasks for other, tasks in held.items() if other != name), "given before it was free"
    for name, mine in given.items():
        held[name], generations[name] = set(mine.tasks), generation
