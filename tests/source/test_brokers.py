"""What holds for every broker without a server: topics, readers, commits, fencing, leases."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.clock import SystemClock, VirtualClock
from flowkit.errors import CommitError, ConfigError, Fenced, InputError
from flowkit.source import Broker, Claim, Reader, Source
from flowkit.source.brokers import open_broker
from flowkit.source.embedded import EmbeddedBroker
from flowkit.source.memory import MemoryBroker
from flowkit.source.memory_store import MemoryStore
from flowkit.source.partitioner import partition_of
from tests.depth import examples

AnyBroker = EmbeddedBroker | MemoryBroker


@dataclass
class Out:
    """One output of a commit."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    time: int = 0


class World:
    """One clock and one place; `open` gives another broker on it, as another process would have."""

    def __init__(self, kind: str, directory: Path, stack: AsyncExitStack) -> None:
        self.clock = VirtualClock(1_000_000)
        store = MemoryStore()
        make: dict[str, Callable[[], AnyBroker]] = {
            "embedded": lambda: EmbeddedBroker(directory, self.clock, sync="normal"),
            "memory": lambda: MemoryBroker(self.clock, store),
        }
        self._make, self._stack = make[kind], stack

    async def open(self) -> AnyBroker:
        return await self._stack.enter_async_context(self._make())


@pytest.fixture(params=["embedded", "memory"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(request.param, tmp_path / "broker", stack)


@pytest.fixture
async def broker(world: World) -> AnyBroker:
    opened = await world.open()
    await opened.create("in", 1)
    await opened.create("out", 3)
    return opened


async def values(broker: AnyBroker, topic: str, partition: int, offset: int = 0) -> list[bytes | None]:
    return list((await broker.read(topic, partition, offset, 1_000_000)).values)


def plain(*texts: bytes) -> list[tuple[bytes | None, bytes | None, int]]:
    return [(None, text, 0) for text in texts]


async def test_both_brokers_fit_the_seam(broker: AnyBroker) -> None:
    seam: Broker = broker  # mypy is the judge
    source: Source = seam.source("in")
    reader: Reader = await source.open(0, None)
    claim: Claim = await seam.claim("t", "")
    assert (await source.splits(), source.codec, await reader.fetch(1), claim.epoch) == (range(1), None, None, 1)


# --- topics -----------------------------------------------------------------------------------------------------------


async def test_topics_are_listed_with_their_partitions(broker: AnyBroker) -> None:
    assert await broker.topics() == {"in": 1, "out": 3}
    assert (await broker.partitions("out"), await broker.partitions("nope")) == (3, 0)
    assert await broker.end_offsets("out") == [0, 0, 0]


async def test_a_topic_is_made_once_and_keeps_its_number_of_partitions(broker: AnyBroker) -> None:
    await broker.create("out", 3)
    with pytest.raises(ConfigError, match=r"topic 'out' .* exists with 3 partitions, not 4"):
        await broker.create("out", 4)


@pytest.mark.parametrize(
    ("name", "partitions"), [("", 1), ("a/b", 1), ("..", 1), ("a\0b", 1), ("x" * 250, 1), ("ok", 0)]
)
async def test_what_cannot_be_a_topic_is_told(broker: AnyBroker, name: str, partitions: int) -> None:
    with pytest.raises(ConfigError, match=r"letters, digits|at least one"):
        await broker.create(name, partitions)


async def test_an_unknown_topic_is_told_with_those_that_exist_and_the_cure(broker: AnyBroker) -> None:
    wanted = r"no topic 'trades' at \w+://.* \(topics: in, out\): flowkit topics create trades"
    uses: list[Callable[[], Any]] = [
        lambda: broker.source("trades").splits(),
        lambda: broker.source("trades").open(0, None),
        lambda: broker.end_offsets("trades"),
        lambda: broker.put("trades", plain(b"x")),
        lambda: broker.read("trades", 0, 0, 1),
        lambda: broker.delete_before("trades", 0, 1),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match=wanted):
            await use()


async def test_a_partition_beyond_the_last_is_told(broker: AnyBroker) -> None:
    for partition in (3, -1):
        with pytest.raises(ConfigError, match=f"'out' .* has the partitions 0 to 2, but no {partition}"):
            await broker.put("out", plain(b"x"), partition)


async def test_records_with_a_key_go_to_the_partition_of_the_key(broker: AnyBroker) -> None:
    keys = [b"card-%d" % n for n in range(30)]
    await broker.put("out", [(key, key, 7) for key in keys])
    for partition in range(3):
        assert await values(broker, "out", partition) == [key for key in keys if partition_of(key, 3) == partition]


async def test_records_without_a_key_go_round_robin_even_one_by_one(broker: AnyBroker) -> None:
    await broker.put("out", plain(b"0", b"1", b"2", b"3"))
    await broker.put("out", plain(b"4"))
    await broker.put("out", plain(b"5"))
    await broker.put("out", [])
    assert [await values(broker, "out", partition) for partition in range(3)] == [
        [b"0", b"3"],
        [b"1", b"4"],
        [b"2", b"5"],
    ]


async def test_what_is_no_bytes_is_refused_as_a_whole(broker: AnyBroker) -> None:
    wrong: Any = [(None, b"fine", 0), (None, "text", 0)]
    with pytest.raises(TypeError, match="topic 'out' has a value of type str"):
        await broker.put("out", wrong)
    assert await broker.end_offsets("out") == [0, 0, 0]


async def test_a_batch_tells_keys_values_times_and_where_each_record_lies(broker: AnyBroker) -> None:
    await broker.put("out", [(b"k", b"v", 5), (None, None, -6), (b"", b"", 2**63 - 1)], partition=2)
    batch = await broker.read("out", 2, 1, 10)
    assert (batch.keys, batch.values, batch.times) == ([None, b""], [None, b""], [-6, 2**63 - 1])
    assert (len(batch), batch.offset(1), batch.position(1)) == (2, 2, 2)
    assert batch.where(1) == "out[2] offset 2"


async def test_reading_at_or_beyond_the_end_gives_nothing(broker: AnyBroker) -> None:
    await broker.put("in", plain(b"x"))
    assert [len(await broker.read("in", 0, offset, limit)) for offset, limit in ((1, 9), (99, 9), (0, 0))] == [0, 0, 0]


# --- readers ----------------------------------------------------------------------------------------------------------


async def drain(reader: Reader, max_records: int) -> list[tuple[int, bytes | None]]:
    found = []
    while (batch := await reader.fetch(max_records)) is not None:
        assert 0 < len(batch) <= max_records
        found += [(batch.offset(index), value) for index, value in enumerate(batch.values)]
    return found


@pytest.mark.parametrize("max_records", [1, 3, 2_048, 5_000, 100_000])
async def test_a_reader_gives_every_record_once_and_in_order_whatever_the_batch_size(
    broker: AnyBroker, max_records: int
) -> None:
    everything = [b"%d" % n for n in range(5_100)]
    for start, stop in ((0, 1), (1, 2_049), (2_049, 4_999), (4_999, 5_100)):
        await broker.put("in", plain(*everything[start:stop]))
    reader = await broker.source("in").open(0, None)
    assert await drain(reader, max_records) == list(enumerate(everything))
    await broker.put("in", plain(b"later"))
    assert await drain(reader, max_records) == [(5_100, b"later")]
    assert not reader.at_end
    await reader.close()


@pytest.mark.parametrize("count", [0, 1, 7, 10])
async def test_a_reader_goes_on_where_a_batch_says(broker: AnyBroker, count: int) -> None:
    await broker.put("in", plain(*(b"%d" % n for n in range(20))))
    batch = await (await broker.source("in").open(0, 3)).fetch(10)
    assert batch is not None
    again = await broker.source("in").open(0, batch.position(count))
    assert await drain(again, 100) == [(n, b"%d" % n) for n in range(3 + count, 20)]


async def test_retention_forgets_what_is_older_and_keeps_the_offsets(broker: AnyBroker) -> None:
    for text in (b"0", b"1", b"2"):
        await broker.put("in", plain(text, text + b"'"))
    await broker.delete_before("in", 0, 3)
    await broker.delete_before("in", 0, 1)
    assert await drain(await broker.source("in").open(0, None), 9) == [(3, b"1'"), (4, b"2"), (5, b"2'")]
    assert await values(broker, "in", 0, 4) == [b"2", b"2'"]
    await broker.delete_before("in", 0, 99)
    await broker.put("in", plain(b"new"))
    assert await drain(await broker.source("in").open(0, None), 9) == [(6, b"new")]


async def test_a_reader_whose_records_were_deleted_is_told_instead_of_going_on_behind_them(broker: AnyBroker) -> None:
    await broker.put("in", plain(b"0", b"1", b"2"))
    behind = await broker.source("in").open(0, 0)
    await broker.delete_before("in", 0, 2)
    with pytest.raises(InputError, match=r"in\[0\] at .* holds offsets 2 to 2, but the reader is at 0"):
        await behind.fetch(10)
    for position in (0, 4):
        with pytest.raises(InputError, match=f"the reader is at {position}"):
            await broker.source("in").open(0, position)


# --- commits ----------------------------------------------------------------------------------------------------------


async def test_a_commit_appends_its_outputs_and_is_found_again(world: World, broker: AnyBroker) -> None:
    claim = await broker.claim("app/0", "/state/1")
    assert (claim.epoch, claim.number, claim.commit_id, claim.state) == (1, 0, None, "")
    assert await broker.last_commit("app/0") == (0, None)
    await broker.commit(
        "app/0", 1, 1, b"id1", {"in": [[0, 5]]}, [Out("out", 0, b"k", b"a", 9), Out("out", 2, None, b"b")]
    )
    await broker.commit(
        "app/0", 1, 2, b"id2", {"in": [[0, 8]]}, [Out("out", 0, b"k", b"c", 9), Out("out", 0, b"k", b"d")]
    )

    other = await world.open()
    assert await other.last_commit("app/0") == (2, b"id2")
    assert await other.positions("app/0") == {"in": [[0, 8]]}
    assert [await values(other, "out", partition) for partition in range(3)] == [[b"a", b"c", b"d"], [], [b"b"]]
    successor = await other.claim("app/0", "/state/2")
    assert (successor.epoch, successor.number, successor.commit_id, successor.state) == (2, 2, b"id2", "/state/1")


async def test_a_commit_that_counts_already_succeeds_and_does_nothing(broker: AnyBroker) -> None:
    await broker.claim("t", "")
    for _ in range(3):
        await broker.commit("t", 1, 1, b"id", None, [Out("out", 0, None, b"once")])
    assert await values(broker, "out", 0) == [b"once"]


async def test_a_number_belongs_to_the_first_frame_that_took_it(broker: AnyBroker) -> None:
    await broker.claim("t", "")
    await broker.commit("t", 1, 5, b"mine", None, [])
    for number, commit_id in ((5, b"other"), (4, b"mine")):
        with pytest.raises(CommitError, match=f"task t: commit {number} came after commit 5"):
            await broker.commit("t", 1, number, commit_id, None, [Out("out", 0, None, b"no")])
    assert await broker.end_offsets("out") == [0, 0, 0]


async def test_an_earlier_owner_is_fenced_and_told_by_whom(world: World, broker: AnyBroker) -> None:
    zombie = await broker.claim("t", "")
    await broker.commit("t", zombie.epoch, 1, b"id1", None, [])
    successor = await world.open()
    await successor.join("worker-b", 5_000)
    await successor.claim("t", "")
    for number, commit_id in ((1, b"id1"), (2, b"id2")):  # even what counted once: it is not the zombie's to know
        with pytest.raises(Fenced, match=r"task t: .* epoch 1 does not count \(worker-b owns it under epoch 2\)"):
            await broker.commit("t", zombie.epoch, number, commit_id, None, [Out("out", 0, None, b"no")])
    await successor.commit("t", 2, 2, b"id2", None, [Out("out", 0, None, b"yes")])
    assert await values(successor, "out", 0) == [b"yes"]


async def test_a_commit_needs_a_claim(broker: AnyBroker) -> None:
    with pytest.raises(Fenced, match=r"task t: .* \(nobody has claimed it\)"):
        await broker.commit("t", 1, 1, b"id", None, [])


async def test_a_commit_to_a_missing_topic_or_partition_leaves_no_trace(broker: AnyBroker) -> None:
    await broker.claim("t", "")
    for bad in (Out("nope", 0, None, b"x"), Out("out", 3, None, b"x")):
        with pytest.raises(ConfigError, match=r"no topic 'nope'|but no 3"):
            await broker.commit("t", 1, 1, b"id", None, [Out("out", 0, None, b"x"), bad])
    assert await broker.last_commit("t") == (0, None)
    assert await broker.end_offsets("out") == [0, 0, 0]


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["claim", "commit", "again", "release"]), st.integers(0, 2), st.integers(0, 1)),
    max_size=25,
)


@given(STEPS)
@examples(60)
def test_both_brokers_answer_alike_and_no_zombie_ever_commits(steps: list[Step]) -> None:
    anyio.run(answers_alike, steps)


async def answers_alike(steps: list[Step]) -> None:
    async with anyio.TemporaryDirectory() as directory, AsyncExitStack() as stack:
        worlds = [World(kind, Path(directory), stack) for kind in ("embedded", "memory")]
        embedded, memory = [await play(await world.open(), steps) for world in worlds]
        assert embedded == memory


async def play(broker: AnyBroker, steps: list[Step]) -> list[Any]:
    """Three owners of two tasks in one story; what each step gave, and what lies in the topic in the end."""
    await broker.create("out", 1)
    epochs: dict[tuple[int, int], int] = {}
    owner: dict[int, int | None] = {}
    said: list[Any] = []
    for at, (what, me, task_number) in enumerate(steps):
        task, mine = f"task-{task_number}", epochs.get((me, task_number), 0)
        number, _ = await broker.last_commit(task)
        try:
            if what == "claim":
                claim = await broker.claim(task, f"state-{at}", worker=f"worker-{me}")
                epochs[me, task_number], owner[task_number] = claim.epoch, me
                said.append((claim.epoch, claim.number, claim.commit_id, claim.state))
            elif what == "release":
                await broker.release(task, mine)
                owner[task_number] = None if owner.get(task_number) == me else owner.get(task_number)
            else:
                number += what == "commit"
                await broker.commit(task, mine, number, b"id-%d" % number, number, [Out("out", 0, None, b"%d" % at)])
                assert owner.get(task_number) == me, "a commit by one who is not the owner counted"
                said.append((at, number))
        except CommitError as error:
            said.append(str(error))
    said += [await values(broker, "out", 0), await broker.leases()]
    return said


# --- leases and members -----------------------------------------------------------------------------------------------


async def test_members_live_as_long_as_their_heart_beats(world: World, broker: AnyBroker) -> None:
    other = await world.open()
    await broker.join("app-b", 3_000)
    await other.join("app-a", 3_000)
    await other.join("else", 9_000)
    assert await broker.members() == ["app-a", "app-b", "else"]
    assert await broker.members("app-") == ["app-a", "app-b"]
    world.clock.advance(2_999)
    await broker.heartbeat("app-b")
    world.clock.advance(1)
    assert await other.members("app-") == ["app-b"]
    await broker.heartbeat("app-a")  # it was only slow
    assert await other.members("app-") == ["app-a", "app-b"]
    await broker.leave("app-b")
    assert await other.members("app-") == ["app-a"]
    with pytest.raises(Fenced, match="worker app-b is no member: join first"):
        await broker.heartbeat("app-b")


async def test_leases_tell_who_owns_what_until_when(world: World, broker: AnyBroker) -> None:
    await broker.join("w", 3_000)
    await broker.claim("app/0", "/s0")
    await broker.claim("app/1", "/s1", worker="someone")
    await broker.claim("zoo/0", "")
    await broker.commit("app/0", 1, 1, b"id", None, [])
    now = world.clock.now_ms()
    zero, one = await broker.leases("app/")
    assert (zero.task, zero.owner, zero.epoch, zero.expires_ms, zero.state) == ("app/0", "w", 1, now + 3_000, "/s0")
    assert (zero.number, zero.commit_id) == (1, b"id")
    assert (one.owner, one.expires_ms) == ("someone", now + 10_000)
    assert [lease.task for lease in await broker.leases()] == ["app/0", "app/1", "zoo/0"]


async def test_renewing_prolongs_what_is_owned_and_tells_what_is_lost(world: World, broker: AnyBroker) -> None:
    await broker.join("w", 3_000)
    await broker.claim("app/0", "")
    await broker.claim("app/1", "", worker="thief")
    world.clock.advance(1_000)
    assert await broker.renew("w", ["app/0", "app/1", "app/2"]) == ["app/1", "app/2"]
    assert [lease.expires_ms - world.clock.now_ms() for lease in await broker.leases()] == [3_000, 9_000]


async def test_what_is_released_is_free_and_its_epoch_over(broker: AnyBroker) -> None:
    await broker.claim("t", "/s", worker="w")
    await broker.release("t", 1)
    assert [lease.owner for lease in await broker.leases()] == [""]
    with pytest.raises(Fenced, match="released under epoch 1"):
        await broker.commit("t", 1, 1, b"id", None, [])
    claim = await broker.claim("t", "", worker="v")
    assert (claim.epoch, claim.state) == (2, "/s")
    await broker.release("t", 1)  # one who lost the task cannot give it away
    assert [lease.owner for lease in await broker.leases()] == ["v"]


async def test_who_leaves_gives_all_tasks_up(broker: AnyBroker) -> None:
    await broker.join("w", 3_000)
    await broker.claim("app/0", "")
    await broker.claim("app/1", "", worker="v")
    await broker.leave("w")
    assert [lease.owner for lease in await broker.leases()] == ["", "v"]


async def test_of_two_who_see_a_task_free_the_second_gets_told(broker: AnyBroker) -> None:
    await broker.claim("t", "", worker="first", seen=0)
    with pytest.raises(Fenced, match=r"task t: claimed meanwhile \(first owns it under epoch 1\)"):
        await broker.claim("t", "", worker="second", seen=0)
    assert (await broker.claim("t", "", worker="second", seen=1)).epoch == 2


# --- waiting ----------------------------------------------------------------------------------------------------------


async def test_waiting_ends_after_its_time_on_the_clock(world: World, broker: AnyBroker) -> None:
    start = world.clock.now_ms()
    mark = await broker.wait(250)
    assert world.clock.now_ms() - start == 250
    assert await broker.wait(250, mark) == mark


async def test_what_was_written_since_the_mark_is_not_waited_for(world: World, broker: AnyBroker) -> None:
    other = await world.open()
    mark = await broker.wait(0)
    start = world.clock.now_ms()
    for writer in (broker, other):
        await writer.put("in", plain(b"x"))
        before, mark = mark, await broker.wait(60_000, mark)
        assert mark != before
    assert world.clock.now_ms() == start


@pytest.mark.parametrize("kind", ["embedded", "memory"])
async def test_a_waiter_is_woken_long_before_its_time_is_up(kind: str, tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}" if kind == "embedded" else "memory://woken"
    async with open_broker(url, SystemClock()) as waiter, open_broker(url, SystemClock()) as writer:
        await writer.create("in", 1)
        mark = await waiter.wait(0)  # what is written from here on wakes them, also before they have looked themselves
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(waiter.wait, 3_600_000, mark)
                await anyio.wait_all_tasks_blocked()
                await writer.put("in", plain(b"x"))


# --- URLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("embedded://state/topics", "state/topics"),
        ("embedded:///var/lib/topics", "/var/lib/topics"),
        ("embedded://.?sync=full", "."),
        ("embedded:///with space?sync=normal", "/with space"),
    ],
)
def test_an_embedded_url_names_a_directory(url: str, path: str) -> None:
    broker = open_broker(url, VirtualClock())
    assert isinstance(broker, EmbeddedBroker)
    assert broker.directory == Path(path)


async def test_memory_brokers_of_one_name_share_their_topics() -> None:
    clock = VirtualClock()
    one, same, other = (open_broker(url, clock) for url in ("memory://a", "memory://a", "memory://b"))
    await one.create("t", 2)
    assert [await broker.topics() for broker in (one, same, other)] == [{"t": 2}, {"t": 2}, {}]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("kafka://", "kafka://"),
        ("kinesis://eu-west-1?colour=red", "unknown option 'colour'; there are leases, frames, fan_out, region"),
        ("kinesis://eu-west-1?fan_out=a+b", "fan_out=a b: write yes, no, or a name"),
        ("kinesis://eu-west-1?fan_out=", "fan_out=: write yes, no, or a name"),
        ("redis://x", "unknown scheme 'redis'; use kafka://HOST:PORT .*, embedded://DIR .* or memory://NAME"),
        ("./topics", "this is no URL; use kafka://"),
        ("", "this is no URL"),
        ("embedded://", "names no directory"),
        ("embedded://d?sync=off", "unknown option 'sync=off'"),
    ],
)
def test_a_wrong_url_is_told_with_what_there_is(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        open_broker(url, VirtualClock())
