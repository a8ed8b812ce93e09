"""Who runs which task, by Kafka's consumer group protocol: one assignor whose unit is the task.

    join        each member tells which tasks it runs, and since which generation
    assign      the leader shares them out as `placement.share` says: sticky, balanced, and a task that its owner has to
                give up goes to nobody yet
    release     the owner commits, closes, and asks for another round; in that one the task is free

A worker that was killed and is started again with the same disk joins under the same instance id (`kafka_static`): it
is the member that it was, and has its tasks without a round. It may have to give some up that its predecessor did not
come to, which is why the leader tells that too. Of two that live under one id, the disk of one being a copy, the
younger has it and its tasks; the older lets go of them, takes another id, and joins as a newcomer.

So a task changes hands as among workers with leases: only when its owner has let go of it, or is dead. The protocol of
aiokafka is eager, but nothing is given up at a round's beginning: an owner that is none any more is fenced by its
transactional id, and can harm nothing. The partitions themselves are not assigned: tasks read theirs by hand.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import msgspec
import structlog

from flowkit.errors import BrokerError
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_client import broker_error, started, stopped
from flowkit.source.kafka_static import made_static
from flowkit.source.placement import Placing, share
from flowkit.source.rules import Lease
from flowkit.source.seam import Home

log = structlog.get_logger("flowkit.kafka")

FOREVER = 2**63 - 1

POLL_MS = 30_000
"""A worker whose loop does not turn for so long, or for three sessions, leaves the group."""

ANSWER_MS = 5_000
"""A round lasts as long as the session of a dead member: its answer may come so much later."""


class Member(msgspec.Struct, array_like=True):
    """What a worker tells the group of itself: its name, all tasks of the app, those it runs, and since when.

    `disk`: by task whose state it has on its disk, the number of the last commit there.
    """

    worker: str
    tasks: list[str]
    held: list[str]
    generation: int
    disk: dict[str, int] = {}


class Assigned(msgspec.Struct, array_like=True):
    """What the leader tells a worker: its tasks, and those that it has to give up so that others can have them.

    `worker`: whom it tells. `among`: of all tasks that were shared out, a sum (`sum_of`).
    """

    tasks: list[str]
    releases: list[str] = []
    worker: str = ""
    among: int = 0


def sum_of(tasks: Sequence[str]) -> int:
    """A number by which other tasks are known to be others."""
    return crc32("\n".join(sorted(tasks)).encode())


_encode = msgspec.msgpack.Encoder().encode
_member = msgspec.msgpack.Decoder(Member).decode
_assigned = msgspec.msgpack.Decoder(Assigned).decode


def assign(members: Mapping[str, Member]) -> dict[str, Assigned]:
    """The tasks of each member, by its id in the group.

    Of two who say that they run a task, the one with the newer generation does: the other was away.
    """
    tasks = sorted({task for member in members.values() for task in member.tasks})
    names = {f"{member.worker} {id_}": id_ for id_, member in members.items()}  # a worker may be in it twice, restarted
    leases = {}
    for name, id_ in sorted(names.items(), key=lambda pair: (members[pair[1]].generation, pair[0])):
        for task in members[id_].held:
            leases[task] = Lease(task, name, 0, FOREVER, "")
    disks = {name: members[id_].disk for name, id_ in names.items()}
    given = {}
    for name, id_ in names.items():
        claims, releases = share(tasks, list(names), name, list(leases.values()), 0, disks)
        kept = {task for task, lease in leases.items() if lease.owner == name} - set(releases)
        given[id_] = Assigned(sorted(kept | set(claims)), releases, members[id_].worker, sum_of(tasks))
    return given


class KafkaGroup:
    """One worker's membership. `held` is told by `place`, about once a second: that is also its sign of life."""

    def __init__(
        self,
        address: KafkaAddress,
        group: str,
        worker: str,
        topics: Sequence[str],
        ttl_ms: int,
        home: Home | None = None,
    ) -> None:
        self.address, self.group, self.worker, self.topics, self.ttl_ms = address, group, worker, list(topics), ttl_ms
        self.home = home
        self.assigned: set[str] | None = None
        """The tasks of this worker; None before the first round, and while it is no member."""
        self.generation = -1
        self.news = asyncio.Event()
        """Set by a round, until the next `place`."""
        self._tasks: list[str] = []
        self._held: set[str] = set()
        self._alive_at = 0.0
        self._heard_at = 0.0
        """When (monotonic seconds) the group's coordinator last answered anything."""
        self._joins = 0
        """Requests to join that are under way: they are answered when the round is over."""
        self._sure_ms = ttl_ms
        """A session that the cluster has granted before."""
        self._giving_up: set[str] = set()
        self._consumer: Any = None
        self._member = False
        """True from `start` to `stop`, whatever has become of the consumer."""
        self._told: dict[Any, int] = {}

    async def start(self, tasks: Sequence[str]) -> None:
        """Become a member; or again, maybe with another `ttl_ms`: what it held before it says to hold."""
        from aiokafka import AIOKafkaConsumer

        self._tasks, self._member = list(tasks), True
        options = self.address.client_options()
        options["request_timeout_ms"] = max(self.address.timeout_ms, self.ttl_ms + ANSWER_MS)
        consumer = AIOKafkaConsumer(
            **options,
            client_id=self.worker,
            group_id=self.group,
            group_instance_id=None if self.home is None else self.home.instance(),
            enable_auto_commit=False,
            session_timeout_ms=self.ttl_ms,
            # By its heartbeats a member hears that there is a round: one who leaves is missed until then.
            heartbeat_interval_ms=max(100, min(1_000, self.ttl_ms // 4)),
            rebalance_timeout_ms=self.ttl_ms,
            # Without a call of `place` for as long it leaves: a loop that stands still must not keep its tasks.
            max_poll_interval_ms=max(POLL_MS, 3 * self.ttl_ms),
            partition_assignment_strategy=[_assignor(self)],
        )
        self._consumer = await started(consumer, self.address)
        if self.home is not None:
            made_static(consumer)
        self._listen(consumer._coordinator)  # noqa: SLF001  it says nowhere when it was answered
        consumer.subscribe(self.topics)  # after the start, which else waits for the round: a dead member's time

    def _listen(self, coordinator: Any) -> None:
        """See when the coordinator answers: aiokafka goes on asking in silence, whatever becomes of it."""
        ask, self._heard_at, self._joins = coordinator._send_req, time.monotonic(), 0  # noqa: SLF001

        async def heard(request: Any) -> Any:
            joins = type(request).__name__.startswith(("Join", "Sync"))
            self._joins += joins
            try:
                answer = await ask(request)
            finally:
                self._joins -= joins
            self._heard_at = time.monotonic()
            return answer

        coordinator._send_req = heard  # noqa: SLF001

    async def stop(self) -> None:
        """Leave: the others share out what it had, at once."""
        self._member = False
        await self._drop()

    async def _drop(self) -> None:
        consumer, self._consumer, self.assigned = self._consumer, None, None
        if consumer is not None:
            await stopped(consumer)

    async def place(self, tasks: Sequence[str], held: set[str]) -> Placing:
        """What has to be claimed and released, by the last round."""
        self._tasks, self._held = list(tasks), set(held)
        self.news.clear()
        if not self._member:
            return Placing({}, [])
        await self._look()
        if self.assigned is None:
            return Placing({}, [])
        self._alive_at = time.monotonic()
        given_up = self._giving_up - held
        self._giving_up = held - self.assigned
        if given_up and not self._giving_up:
            # aiokafka has no public way to ask for another round.
            self._consumer._coordinator.request_rejoin()  # noqa: SLF001
        return Placing(dict.fromkeys(sorted(self.assigned - held)), sorted(self._giving_up))

    async def _look(self) -> None:
        """Take nothing from the consumer, which has no partitions: that is how it knows that its owner is alive.

        Raises BrokerError with what went wrong in its background.
        """
        from aiokafka.errors import InvalidSessionTimeoutError, KafkaError

        if self._consumer is None:  # to begin anew did not work the last time
            await self.start(self._tasks)
        try:
            await self._consumer.getmany(timeout_ms=0)
        except InvalidSessionTimeoutError:
            if self.ttl_ms == self._sure_ms:
                raise
            log.warning("the cluster grants no such session", asked_ms=self.ttl_ms, back_to_ms=self._sure_ms)
            self.ttl_ms = self._sure_ms
            await self._drop()
            await self.start(self._tasks)
        except KafkaError as error:
            if getattr(self._consumer._coordinator, "fenced", False):  # noqa: SLF001
                await self._give_way()
                return
            if self._consumer._coordinator._coordination_task.done():  # noqa: SLF001
                # It would say the same for ever, and belong to no group.
                log.warning("membership failed; joining anew", group=self.group, error=repr(error))
                await self._drop()
                await self.start(self._tasks)
            raise broker_error(self.address, f"group {self.group!r}", error) from error
        silent = time.monotonic() - self._heard_at
        if silent > (self.ttl_ms + (ANSWER_MS if self._joins else 0)) / 1000:
            if not self._joins:  # the membership is over, and its connections may be half open: others are made
                await self._drop()
            raise BrokerError(
                f"{self.address.url}: group {self.group!r}: its coordinator has not answered for {silent:.0f} s, "
                f"longer than the session of {self.ttl_ms / 1000:g} s: other workers may have taken the tasks"
            )

    async def _give_way(self) -> None:
        """Another worker lives under our instance id: it has our place. Let go of all, and be somebody else."""
        assert self.home is not None
        theirs = self.home.instance()
        self.home.other_instance()
        log.error(
            "another worker has joined under this one's instance id: the state directory of one is a copy of the "
            "other's; that worker keeps id and tasks, this one goes on as a new member: give each its own --state",
            group=self.group,
            worker=self.worker,
            instance=theirs,
            instance_now=self.home.instance(),
        )
        await self._drop()
        self.assigned, self.generation = set(), -1  # what we hold is theirs, whatever they have told by now
        await self.start(self._tasks)

    async def tell(self, offsets: Mapping[Any, int], notes: Mapping[Any, str]) -> None:
        """Say how far the tasks are, for lag tools, and note where they have their commits.

        No position depends on it: a failure is no matter.
        """
        from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
        from aiokafka.structs import OffsetAndMetadata

        told = {part: offset for part, offset in offsets.items() if self._told.get(part) != offset}
        if not told or self._consumer is None or self.assigned is None:
            return
        # Its public way takes only partitions that the group has assigned, and here it assigns none.
        commit = self._consumer._coordinator._do_commit_offsets  # noqa: SLF001
        try:
            async with asyncio.timeout(1):
                noted = {part: OffsetAndMetadata(offset, notes.get(part, "")) for part, offset in told.items()}
                await commit(None, noted)
        except UnknownTopicOrPartitionError:
            self._told |= told  # one is gone, whose position stays: the broker has taken the others
        except (KafkaError, TimeoutError) as error:
            log.debug("offsets not told", group=self.group, error=repr(error))
        else:
            self._told |= told

    def is_ours(self, task: str) -> bool:
        """True if the last round gave us the task, and we have not been away since for so long that others have it.

        A process that was stopped finds out about its membership only some time after it goes on.
        """
        away = time.monotonic() - self._alive_at
        return self.assigned is not None and task in self.assigned and away < self.ttl_ms / 1000

    # What the assignor does

    def told(self) -> Member:
        """What this worker says of itself when it joins: it holds what it was given, whether it runs yet or not."""
        held = self._held | (self.assigned or set())
        disk = {} if self.home is None else self.home.newest()
        # The broker keeps what all members say in one record: only what matters.
        disk = {task: disk[task] for task in self._tasks if task in disk and task not in held}
        return Member(self.worker, self._tasks, sorted(held), self.generation, disk)

    def gave(self, assigned: Assigned) -> None:
        """A round is over. It may end while we leave, which waits for it."""
        if self._consumer is None:
            return
        self.assigned, self._giving_up = set(assigned.tasks), set(assigned.releases)
        self.generation = self._consumer._coordinator.generation  # noqa: SLF001
        if assigned.worker not in (self.worker, "") and assigned.among != sum_of(self._tasks):
            # We came into our predecessor's place, and our app is not the one that it ran.
            self.assigned &= set(self._tasks)
            self._consumer._coordinator.request_rejoin()  # noqa: SLF001
        self._alive_at = time.monotonic()
        self.news.set()
        log.info("tasks shared out", group=self.group, generation=self.generation, ours=len(self.assigned))


def _assignor(group: KafkaGroup) -> Any:
    """An assignor of aiokafka's for one membership: aiokafka calls its class, so each membership has one."""
    from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
    from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

    class TaskAssignor(AbstractPartitionAssignor):  # type: ignore[misc]  # aiokafka has no types
        name = "flowkit-tasks"

        @classmethod
        def metadata(cls, topics: Any) -> Any:
            return ConsumerProtocolMemberMetadata(0, list(topics), _encode(group.told()))

        @classmethod
        def assign(cls, cluster: Any, members: Any) -> Any:
            told = {id_: _member(metadata.user_data) for id_, metadata in members.items()}
            given = assign(told)
            return {id_: ConsumerProtocolMemberAssignment(0, [], _encode(mine)) for id_, mine in given.items()}

        @classmethod
        def on_assignment(cls, assignment: Any) -> None:
            group.gave(_assigned(assignment.user_data))

    return TaskAssignor
