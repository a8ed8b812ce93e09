"""What a role has to be allowed on an MSK cluster, if it signs in by IAM (`sasl=msk-iam`).

The actions are those of "Semantics of IAM authorization policy actions and resources" in Amazon MSK's developer guide;
each stands for an operation that Kafka's own authorizer asks for, which is how they are tested.

    Connect                        cluster            every connection
    WriteDataIdempotently          cluster            producers without a transactional id: at least once, checkpoints
    DescribeTopic, ReadData, …     topic              the app's topics, and the changelogs of its tasks
    DeleteTopic                    topic              also what deletes records: frames that checkpoints hold
    DescribeGroup, AlterGroup      group              the app's name: who runs which task
    …TransactionalId               transactional-id   one for each task
"""

import re
from collections.abc import Iterable, Sequence

from flowkit.aws import Right, Use, literal, msk_arn
from flowkit.options import Guarantee
from flowkit.source.internal import changelog_of
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.seam import TopicUse

READ = ("DescribeTopic", "ReadData")
WRITE = ("DescribeTopic", "WriteData")
TRANSACTIONS = ("AlterTransactionalId", "DescribeTransactionalId")


def broker_rights(address: KafkaAddress, use: TopicUse, guarantee: Guarantee) -> Sequence[Right]:
    """What the workers of an app do with the cluster: () if it is not one that asks IAM."""
    if address.sasl != "msk-iam":
        return ()
    say = _Saying(address.region)
    rights = [
        *say.topics("topics that the app reads, made if they are not there", use.read, "CreateTopic", *READ),
        *say.topics("topics that the app reads, by their pattern", use.patterns, *READ, patterns=True),
        *say.topics("topics that the app writes, made if they are not there", use.written, "CreateTopic", *WRITE),
        *say.topics("streams between the app's agents", use.internal, "CreateTopic", *READ, *WRITE),
        say.right("group", literal(use.app), "AlterGroup", "DescribeGroup", why="who runs which task"),
    ]
    logs = sorted({changelog_of(f"{use.app}/{group}/0")[0] for group in use.groups})
    trims = ("DeleteTopic",) if use.trims else ()
    rights += say.topics("changelogs of the app's tasks", logs, "CreateTopic", *READ, *WRITE, *trims)
    if guarantee == "exactly once":
        for group in use.groups:
            tasks = literal(f"{use.app}/{group}/") + "*"
            rights.append(say.right("transactional-id", tasks, *TRANSACTIONS, why="commits, each a transaction"))
        return [say.connects(), *rights]
    return [say.connects("WriteDataIdempotently"), *rights]


def input_rights(address: KafkaAddress, topic: str | None, pattern: re.Pattern[str] | None) -> Sequence[Right]:
    """What a bounded run does that reads a topic, or all that match."""
    if address.sasl != "msk-iam":
        return ()
    say = _Saying(address.region)
    names = [topic] if topic else [pattern.pattern if pattern else ""]
    return [say.connects(), *say.topics("an input", names, *READ, patterns=not topic)]


def storage_rights(address: KafkaAddress, topic: str, use: Use) -> Sequence[Right]:
    """What is done with a topic of checkpoints."""
    if address.sasl != "msk-iam":
        return ()
    say = _Saying(address.region)
    looks = (*READ, "DescribeTopicDynamicConfiguration")
    if use == "read":
        return [say.connects(), *say.topics("checkpoints", [topic], *looks)]
    changes = say.right(
        "transactional-id", literal(f"flowkit-checkpoints/{topic}/") + "*", *TRANSACTIONS, why="checkpoints"
    )
    written = say.topics("checkpoints", [topic], *looks, "CreateTopic", "WriteData")
    return [say.connects("WriteDataIdempotently"), *written, changes]


class _Saying:
    def __init__(self, region: str | None) -> None:
        self.region = region

    def right(self, kind: str, name: str, *actions: str, why: str) -> Right:
        return Right("kafka-cluster", tuple(dict.fromkeys(actions)), msk_arn(kind, name, self.region), (), why)

    def connects(self, *more: str) -> Right:
        return self.right("cluster", "", "Connect", *more, why="the cluster")

    def topics(self, why: str, names: Iterable[str], *actions: str, patterns: bool = False) -> list[Right]:
        return [
            self.right("topic", f"{literal(begins(name))}*" if patterns else literal(name), *actions, why=why)
            for name in names
        ]


def begins(pattern: str) -> str:
    """What all names begin with that a regular expression matches, as far as that can be told at once.

    >>> begins("orders-[a-z]+"), begins("orders?"), begins("(a|b)c"), begins("a|b")
    ('orders-', 'order', '', '')
    """
    if "|" in re.sub(r"\(.*\)", "", pattern):
        return ""
    plain = re.match(r"(?:[\w-]|\\[.-])*", pattern)
    found = plain[0] if plain else ""
    if pattern[len(found) : len(found) + 1] in ("?", "*", "{"):
        found = found[:-1].removesuffix("\\")
    return found.replace("\\", "")
