"""Every call that a test's proxies see has to be allowed by the policy of what the test has opened.

So the whole suite holds `flowkit iam` to its word: whatever a destination, a source or a storage does there, among all
faults and after all ends, its own rights cover it. That they hold no more than that, each alone shows in test_iam….
Set-up goes around the proxies; where a test has made nothing that has rights, it is the test that asks.
"""

import functools
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest

from flowkit.aws import Right, policy_of
from flowkit.sink.destinations import SERVICES
from flowkit.source.dynamo_leases import DynamoLeases
from flowkit.source.kinesis_fan_out import Consumer
from flowkit.source.kinesis_reader import KinesisSource
from flowkit.source.s3 import S3Topic
from flowkit.store import KmsKey
from flowkit.store.s3 import S3Storage
from tests.aws import proxy
from tests.aws.asking import Reader
from tests.aws.policies import ACCOUNT, AREA, Asked, Policy


class Recorder:
    """What was opened in a test, and the proxies that it has gone through."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.proxies: list[proxy.Proxy] = []
        self.refused: set[str] = set()
        """Actions that the test tries without a right to them."""

    def rights(self) -> Iterable[Right]:
        """Of all that was opened."""
        for made in self.made:
            yield from made.place.rights() if isinstance(made, S3Storage) else made.rights()

    def check(self) -> None:
        """Each request is allowed."""
        seen = [request for each in self.proxies for request in each.requests]
        if not self.made or not seen:
            return
        check(policy_of(self.rights(), account=ACCOUNT, region=AREA), seen, self.refused)


def check(policy: Any, requests: Iterable[proxy.Request], refused: Container[str] = ()) -> None:
    """Each request is allowed by the policy, but for actions that may be `refused`."""
    reader, allowed = Reader(), Policy(policy)
    known: dict[tuple[str, str, str], bool] = {}
    denied: dict[str, None] = {}
    for request in requests:
        for asked in reader.asked(request):
            if not _is_allowed(allowed, asked, known) and asked.action not in refused:
                denied[f"  {asked.action} on {asked.resource} with {asked.keys}"] = None
        reader.answered(request)
    assert not denied, "not allowed by what flowkit iam would print:\n" + "\n".join(denied)


def _is_allowed(policy: Policy, asked: Asked, known: dict[tuple[str, str, str], bool]) -> bool:
    at = (asked.action, asked.resource, str(asked.keys))
    if at not in known:
        known[at] = policy.allows(asked)
    return known[at]


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Remember what is opened, and which proxies are."""
    recorder = Recorder()
    for name in sorted({module for module, _ in SERVICES.values()}):
        module: Any = import_module(name)
        monkeypatch.setattr(module, "open_destination", _noting(module.open_destination, recorder.made))
    for kind in (Consumer, DynamoLeases, KinesisSource, KmsKey, S3Storage, S3Topic):
        monkeypatch.setattr(kind, "__init__", _noting_self(kind.__init__, recorder.made))
    monkeypatch.setattr(proxy, "watchers", [recorder.proxies.append])
    yield recorder


def _noting(make: Callable[..., Any], made: list[Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def noted(*given: Any, **named: Any) -> Any:
        found = make(*given, **named)
        made.append(found)
        return found

    return noted


def _noting_self(init: Callable[..., None], made: list[Any]) -> Callable[..., None]:
    @functools.wraps(init)
    def noted(self: Any, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        made.append(self)

    return noted
