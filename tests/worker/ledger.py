"""A broker at the seam that keeps its books as Kafka does, in memory, and whose calls go wrong as a script says.

    Cluster          partitions with transactions, changelogs of frames, an epoch and at most one transaction a task
    LedgerBroker     a worker's connection to it: claims, reads, commits, in one request after the other
    Script           which request meets which misfortune, one misfortune after the other

The cluster knows nothing of workers and no mercy: what arrives counts, or is refused, by epoch and transaction alone.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from flowkit.errors import BrokerError, Fenced, OutcomeUnknown, StoreCorrupt
from flowkit.options import Guarantee
from flowkit.source.kafka_batch import KafkaBatch
from flowkit.source.rules import Claimed, KeyValueTime, place
from flowkit.source.seam import Output
from flowkit.store import Frame

T = TypeVar("T")

Fault = Literal["before", "after", "late", "fenced", "fenced after", "unshown", "hang", "kill"]
"""What a request may meet:

    before         it fails, and nothing has been done
    after          it is done, and the answer is lost
    late           the answer is lost, and it arrives only after the task has been claimed again
    fenced         another owner has claimed the task meanwhile (and is gone again)
    fenced after   it is done, the answer is lost, another owner claims, and the request, tried again, is refused
    unshown        it is done, but readers are not shown it before the next owner says which partitions it is about
    hang           no answer comes, ever
    kill           (between two steps of a commit) the process dies
"""


Mistake = Literal["nobody is fenced", "open transactions count", "outputs by themselves", "frame forgotten"]


class Killed(Exception):
    """The process has died here."""


class Trouble(NamedTuple):
    """`fault` meets `step` of a task or topic with `about` in its name, once that has been passed `passed` times."""

    about: str
    step: str
    fault: Fault
    passed: int = 0


@dataclass
class Script:
    """Troubles, one after the other: the next one waits until the one before has struck."""

    troubles: list[Trouble]
    struck: list[Trouble] = field(default_factory=list)
    hanging: asyncio.Future[None] | None = None
    """A request that waits for an answer."""
    hangs: asyncio.Event = field(default_factory=asyncio.Event)

    def fault(self, step: str, about: str) -> Fault | None:
        """What the request that is made now meets."""
        if not self.troubles or self.troubles[0].step != step or self.troubles[0].about not in about:
            return None
        trouble = self.troubles.pop(0)
        if trouble.passed:
            self.troubles.insert(0, trouble._replace(passed=trouble.passed - 1))
            return None
        self.struck.append(trouble)
        return trouble.fault

    async def hang(self) -> None:
        """Wait until the process is killed."""
        self.hanging = asyncio.get_running_loop().create_future()
        self.hangs.set()
        await self.hanging

    async def pass_by(self, about: str, step: str) -> None:
        """Between two steps of a commit."""
        if self.fault(step, about) == "kill":
            raise Killed(step)


# --- the cluster ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Transaction:
    state: Literal["open", "decided", "committed", "aborted"] = "open"
    """Decided: it will be committed, but not all partitions have been told."""
    wrote: set[str] = field(default_factory=set)


@dataclass
class Entry:
    """Something in a partition. Of a changelog: a frame (None: a claim) and its owner's epoch."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    within: Transaction | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class Kept(NamedTuple):
    epoch: int
    frame: Frame | None
    state: str
    within: Transaction | None


class Cluster:
    """What outlives every worker. `mistake` breaks one of its rules, so that tests can be seen to fail."""

    def __init__(self, mistake: Mistake | None = None) -> None:
        self.mistake = mistake
        self.topics: dict[str, list[list[Entry]]] = {}
        self.changelogs: dict[str, list[Kept]] = {}
        self.epochs: dict[str, int] = {}
        self.transactions: dict[str, Transaction] = {}
        self.late: dict[str, list[Callable[[], Any]]] = {}
        """By task: requests that are still on their way."""
        self.refused = 0
        """How many requests of owners that are none any more were refused."""

    # Owners

    def begin(self, task: str, writes: Mapping[str, int]) -> int:
        """A new owner's epoch; what earlier ones had begun is ended."""
        transaction = self.transactions.pop(task, None)
        if transaction is not None and self.mistake != "nobody is fenced":
            if transaction.state == "decided":
                assert transaction.wrote <= writes.keys(), "the owner before wrote where this one knows nothing of"
                transaction.state = "committed"
            elif transaction.state == "open" and self.mistake != "open transactions count":
                transaction.state = "aborted"
            else:
                transaction.state = "committed"
        self.epochs[task] = self.epochs.get(task, 0) + 1
        return self.epochs[task]

    def check(self, task: str, epoch: int) -> None:
        """Raise Fenced unless `epoch` is the owner's."""
        if epoch != self.epochs.get(task) and self.mistake != "nobody is fenced":
            self.refused += 1
            raise Fenced(f"task {task}: epoch {epoch} is over, {self.epochs.get(task)} is its owner's")

    def arrive(self, task: str) -> None:
        """What was late arrives."""
        for request in self.late.pop(task, []):
            try:
                request()
            except (Fenced, OutcomeUnknown):
                continue  # nobody waits for the answer

    # Writing

    def append(self, outputs: Sequence[Output], within: Transaction | None) -> None:
        for output in outputs:
            log = self.topics[output.topic][output.partition]
            log.append(Entry(len(log), output.key, output.value, output.time, within))
            if within is not None:
                within.wrote.add(output.topic)

    def keep(self, task: str, kept: Kept) -> None:
        self.changelogs.setdefault(task, []).append(kept)

    def put(self, topic: str, records: Sequence[KeyValueTime]) -> None:
        """From outside."""
        logs = self.topics[topic]
        for partition, group in place(records, len(logs), None, turn=sum(map(len, logs))).items():
            for key, value, time in group:
                logs[partition].append(Entry(len(logs[partition]), key, value, time, None))

    # Reading

    def shown(self, topic: str, partition: int) -> int:
        """The offset before which everything is decided."""
        log = self.topics[topic][partition]
        return next((e.offset for e in log if e.within is not None and e.within.state in ("open", "decided")), len(log))

    def committed(self, topic: str, partition: int, offset: int = 0) -> list[Entry]:
        """The records from `offset` on that readers are shown."""
        log = self.topics[topic][partition][offset : self.shown(topic, partition)]
        return [entry for entry in log if entry.within is None or entry.within.state == "committed"]

    def counted(self, task: str) -> list[Kept]:
        """The frames that count: in order, each the child of the one before, none of an owner that was none any more.

        So it is for readers: behind what is open they see nothing.
        """
        epoch = 0
        found: list[Kept] = []
        for kept in self.changelogs.get(task, []):
            if kept.within is not None and kept.within.state != "committed":
                if kept.within.state == "aborted":
                    continue
                break
            if kept.within is None and kept.epoch < epoch:
                self.refused += 1
                continue
            epoch = kept.epoch
            if kept.frame is None:
                continue
            number, parent = (found[-1].frame.number, found[-1].frame.commit_id) if found else (0, b"")  # type: ignore[union-attr]
            if (kept.frame.number, kept.frame.parent) == (number + 1, parent):
                found.append(kept)
        return found[:-1] if self.mistake == "frame forgotten" and len(found) > 1 else found


# --- a worker's connection --------------------------------------------------------------------------------------------


class LedgerReader:
    """Reads one partition, committed records only."""

    at_end = False

    def __init__(self, broker: "LedgerBroker", topic: str, split: int, offset: int) -> None:
        self.broker, self.topic, self.split, self.offset = broker, topic, split, offset

    async def fetch(self, max_records: int) -> KafkaBatch | None:
        cluster = self.broker.cluster

        def do() -> list[Entry]:
            found = cluster.committed(self.topic, self.split, self.offset)[:max_records]
            # Behind the last record: aborted ones take offsets, too, and may be all that is there.
            full = len(found) == max_records
            self.offset = found[-1].offset + 1 if full else cluster.shown(self.topic, self.split)
            return found

        first = self.offset
        found = await self.broker.request("fetch", self.topic, do, reads=True)
        return KafkaBatch.of(self.topic, self.split, first, found) if found else None

    async def close(self) -> None:
        return None


class LedgerSource:
    codec: str | None = None

    def __init__(self, broker: "LedgerBroker", topic: str) -> None:
        self.broker, self.topic = broker, topic

    async def splits(self) -> Sequence[int]:
        return range(len(self.broker.cluster.topics[self.topic]))

    async def open(self, split: int, position: Any) -> LedgerReader:
        return LedgerReader(self.broker, self.topic, split, position or 0)


class LedgerBroker:
    """One worker's connection to `cluster`. Any error makes a task's producer useless until it is claimed again."""

    def __init__(self, cluster: Cluster, script: Script, guarantee: Guarantee) -> None:
        self.cluster, self.script, self.guarantee = cluster, script, guarantee
        self.writes: Mapping[str, int] = {}
        self._epochs: dict[str, int] = {}

    async def topics(self) -> Mapping[str, int]:
        return {name: len(logs) for name, logs in self.cluster.topics.items()}

    async def partitions(self, topic: str) -> int:
        return len(self.cluster.topics.get(topic, ()))

    async def end_offsets(self, topic: str) -> list[int]:
        return [len(log) for log in self.cluster.topics[topic]]

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return 0, len(self.cluster.topics[topic][partition])

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> Any:
        """For patterns, of which there are none here."""
        raise NotImplementedError

    async def ran(self, tasks: str) -> int:
        """For patterns, of which there are none here."""
        raise NotImplementedError

    async def create(self, topic: str, partitions: int, *, internal: bool = False) -> None:
        self.cluster.topics[topic] = [[] for _ in range(partitions)]

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Nothing is forgotten here."""

    def source(self, topic: str, **_how: Any) -> LedgerSource:
        return LedgerSource(self, topic)

    @property
    def _once(self) -> bool:
        return self.guarantee == "exactly once"

    async def claim(self, task: str, state: str) -> Claimed:
        cluster = self.cluster
        known = cluster.epochs.get(task, 0)

        def do() -> int:
            if self._once:
                return cluster.begin(task, self.writes)
            # A claim is a record like others, under the epoch after the one that was read.
            epoch = known + 1
            cluster.epochs[task] = max(epoch, cluster.epochs.get(task, 0))
            cluster.keep(task, Kept(epoch, None, "", None))
            return epoch

        epoch = await self.request("claim", task, do)
        self._epochs[task] = epoch
        found = cluster.counted(task)
        number, commit_id = await self.last_commit(task)
        cluster.arrive(task)  # the worst moment: what counts has been read
        return Claimed(epoch, number, commit_id, found[-1].state if found else "")

    async def last_commit(self, task: str) -> tuple[int, bytes | None]:
        def do() -> tuple[int, bytes | None]:
            found = self.cluster.counted(task)
            last = found[-1].frame if found else None
            return (0, None) if last is None else (last.number, last.commit_id)

        return await self.request("last_commit", task, do, reads=True)

    async def frames(self, task: str, after: int) -> AsyncGenerator[Frame, None]:
        expected = after + 1
        for kept in await self.request("frames", task, lambda: self.cluster.counted(task), reads=True):
            assert kept.frame is not None
            if kept.frame.number > expected:
                raise StoreCorrupt(f"commit {expected} is not there")
            if kept.frame.number == expected:
                yield kept.frame
                expected += 1

    async def trim(self, task: str, number: int) -> None:
        """Nothing is forgotten here."""

    async def send(self, task: str, epoch: int, outputs: Sequence[Output]) -> None:
        self._check_open(task, epoch)
        await self.request("send", task, lambda: self.cluster.append(outputs, None))

    async def commit(
        self,
        task: str,
        epoch: int,
        number: int,
        commit_id: bytes,
        positions: Any,
        outputs: Sequence[Output],
        frame: Frame | None = None,
    ) -> None:
        assert frame is not None
        assert (frame.number, frame.commit_id) == (number, commit_id)
        self._check_open(task, epoch)
        cluster = self.cluster
        state = f"epoch {epoch}"
        if not self._once:
            await self.request("outputs", task, lambda: cluster.append(outputs, None))
            await self.request("frame", task, lambda: cluster.keep(task, Kept(epoch, frame, state, None)))
            return
        within = Transaction()
        atomic = None if cluster.mistake == "outputs by themselves" else within

        def begin() -> None:
            cluster.check(task, epoch)
            cluster.transactions[task] = within

        def write() -> None:
            cluster.check(task, epoch)
            cluster.append(outputs, atomic)

        def keep() -> None:
            cluster.check(task, epoch)
            cluster.keep(task, Kept(epoch, frame, state, within))

        def end() -> None:
            cluster.check(task, epoch)
            if within.state == "open":
                within.state = "committed"
                cluster.transactions.pop(task, None)

        await self.request("begin", task, begin)
        await self.request("outputs", task, write)
        await self.request("frame", task, keep)
        await self.request("end", task, end)

    def _check_open(self, task: str, epoch: int) -> None:
        if self._epochs.get(task) != epoch:
            raise OutcomeUnknown(f"task {task}: it is not open under epoch {epoch}")

    # Requests

    async def request(self, step: str, task: str, do: Callable[[], T], *, reads: bool = False) -> T:
        """Ask the cluster, or meet what the script says. An error ends what the worker can do with the task."""
        fault = self.script.fault(step, task)
        if fault is None:
            return do()
        lost = BrokerError(f"{step} of {task}: no answer") if reads else OutcomeUnknown(f"{step} of {task}: no answer")
        self._epochs.pop(task, None)
        match fault:
            case "before":
                raise lost
            case "after":
                do()
                raise lost
            case "late":
                self.cluster.late.setdefault(task, []).append(do)
                raise lost
            case "hang":
                await self.script.hang()
            case "fenced" | "fenced after":
                if fault == "fenced after":
                    do()
                self._another_claims(task)
            case "unshown":
                do()
                self._hide(task)
                raise lost
        raise Fenced(f"task {task}: {step} came after another owner's claim")

    def _another_claims(self, task: str) -> None:
        epoch = self.cluster.begin(task, self.writes)
        if not self._once:
            self.cluster.keep(task, Kept(epoch, None, "", None))

    def _hide(self, task: str) -> None:
        kept = self.cluster.changelogs[task][-1]
        assert kept.within is not None
        kept.within.state = "decided"
        self.cluster.transactions[task] = kept.within
