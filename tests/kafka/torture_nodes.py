"""What befalls single nodes of a cluster of three, while the other two go on."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from tests.kafka.proxy import Way
from tests.kafka.real import Kafka

T = TypeVar("T")

GROUPS = ("by-user", "by-item", "by-shop", "by-size")
PARTITIONS = 3
COPIES = 3


class Nodes:
    """Torments nodes, one at a time; which one is drawn, or has the office that the deed is about."""

    def __init__(
        self, kafka: Kafka, ways: Sequence[Way], chance: random.Random, app: str, say: Callable[[str], None]
    ) -> None:
        self.kafka, self.ways, self.chance, self.app, self.say = kafka, ways, chance, app, say

    def node_kill(self) -> None:
        """SIGKILL of one node."""
        self._kill(self._any(), "one of them")

    def node_stop(self) -> None:
        """One node is stopped in good order, and started."""
        node = self._any()
        self.say(f"  node {node}")
        self.kafka.stop(node)
        self._back(node)

    def node_pause(self) -> None:
        """One node stands still, perhaps until others lead in its place: it wakes as a zombie."""
        node = self._any()
        self.say(f"  node {node}")
        self.kafka.pause(node)
        time.sleep(self.chance.choice([2.0, 5.0, 9.0]))
        self.kafka.resume(node)

    def node_cut(self) -> None:
        """The network between one node and all workers is cut; the nodes hear each other."""
        node = self._any()
        self.say(f"  node {node}")
        for way in self.ways:
            way.cut(node)
        time.sleep(self.chance.choice([1.5, 4.5, 7.5]))
        torn = self.chance.random() < 0.5
        for way in self.ways:
            way.mend(node, torn=torn)

    def group_kill(self) -> None:
        """SIGKILL of the node that coordinates the group."""
        self._kill(self._ask(lambda admin: admin.find_coordinator(self.app)), "the group's coordinator")

    def transactions_kill(self) -> None:
        """SIGKILL of the node that coordinates the transactions of a task."""
        task = f"{self.app}/{self.chance.choice(GROUPS)}/{self.chance.randrange(PARTITIONS)}"
        self._kill(self._ask(lambda admin: admin.find_coordinator(task, 1)), f"coordinator of {task}")

    def leader_kill(self) -> None:
        """SIGKILL of the node that leads the partition of a changelog."""
        topic, partition = f"{self.app}-{self.chance.choice(GROUPS)}-changelog", self.chance.randrange(PARTITIONS)

        async def leader(admin: Any) -> int:
            (told,) = await admin.describe_topics([topic])
            return next((int(p["leader"]) for p in told["partitions"] if p["partition"] == partition), -1)

        self._kill(self._ask(leader), f"leader of {topic}[{partition}]")

    def _any(self) -> int:
        return self.chance.choice(self.kafka.nodes)

    def _kill(self, node: int | None, what: str) -> None:
        if node is None or node not in self.kafka.nodes:  # nobody has the office just now
            node = self._any()
        self.say(f"  node {node}, {what}")
        self.kafka.kill(node)
        self._back(node)

    def _back(self, node: int) -> None:
        time.sleep(self.chance.choice([0.0, 4.0, 8.0]))
        self.kafka.start(node)
        if self.chance.random() < 0.8:  # else the next deed may find two nodes behind
            self._in_sync(30)

    def _in_sync(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not self._ask(_behind):
                return
            time.sleep(0.2)
        self.say(f"  not all replicas are in sync within {seconds:g} s")

    def few_copies(self) -> list[str]:
        """Complaints about topics that have fewer copies than there are nodes, whoever made them."""

        async def find(admin: Any) -> list[str]:
            topics = await admin.describe_topics()
            assert any(each["topic"] == f"{self.app}-by-user-changelog" for each in topics)
            few = [each["topic"] for each in topics if any(len(p["replicas"]) < COPIES for p in each["partitions"])]
            return [f"topic {topic} has fewer than {COPIES} replicas" for topic in few]

        return self._ask(find) or []

    def _ask(self, question: Callable[[Any], Awaitable[T]]) -> T | None:
        """None if nobody answers."""

        async def ask() -> T:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap, request_timeout_ms=5_000)
            await admin.start()
            try:
                return await question(admin)
            finally:
                await admin.close()

        try:
            return asyncio.run(asyncio.wait_for(ask(), 10))
        except (KafkaError, OSError, TimeoutError):
            return None


async def _behind(admin: Any) -> int:
    """How many partitions have replicas that are not in sync."""
    topics = await admin.describe_topics()
    return sum(len(p["isr"]) < len(p["replicas"]) for each in topics for p in each["partitions"])


NODE_DEEDS = (
    "node_kill",
    "node_stop",
    "node_pause",
    "node_cut",
    "group_kill",
    "transactions_kill",
    "leader_kill",
)
