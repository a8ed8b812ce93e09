"""The gate: a proxy before an emulator that lets through what a policy allows, and tells what it allowed in vain.

An emulator asks nobody whether something may be done. This does, before each request, as IAM would.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

from tests.aws.asking import Reader
from tests.aws.policies import Asked, Policy
from tests.aws.proxy import Fault, Proxy, Request, proxy_to


class Gate:
    """Denies what the policy does not allow, and remembers it. `aliases` and `buckets`: see `Reader`."""

    def __init__(
        self,
        policy: Mapping[str, Any],
        aliases: Mapping[str, list[str]] | None = None,
        *,
        buckets: Mapping[str, str] | None = None,
    ) -> None:
        self.policy, self.reader = Policy(policy), Reader(aliases, buckets=buckets)
        self.denied: list[Asked] = []
        self.fault: Callable[[Request], Fault | None] = lambda _: None
        """What goes wrong with requests that may be done."""

    def stand_before(self, proxy: Proxy) -> None:
        """Decide about a proxy's requests."""
        proxy.answered = self._answered
        proxy.fault = lambda request: self.fault(request) if self.lets_through(request) else "denied"

    def _answered(self, request: Request) -> Literal["denied"] | None:
        self.reader.answered(request)
        if request.service == "s3" and request.status == 404 and request.method in ("GET", "HEAD"):
            # S3 tells that there is no such object only those who may list all of the bucket.
            bucket = Asked("s3:ListBucket", f"arn:aws:s3:::{request.path.split('/')[1].partition('?')[0]}", {})
            return None if self.policy.would_allow(bucket) else "denied"
        return None

    def lets_through(self, request: Request) -> bool:
        """True if all that it asks for is allowed."""
        denied = [asked for asked in self.reader.asked(request) if not self.policy.allows(asked)]
        self.denied += denied
        return not denied

    def check(self) -> None:
        """Nothing was denied, and nothing allowed in vain."""
        self.check_denied()
        unused = sorted(self.policy.unused())
        assert not unused, "allowed, and never asked for:\n" + "\n".join(
            f"  {g.action} on {g.resource}" for g in unused
        )

    def check_denied(self) -> None:
        """Nothing was denied."""
        denied = dict.fromkeys(f"  {a.action} on {a.resource} with {a.keys}" for a in self.denied)
        assert not denied, "asked for, and not allowed:\n" + "\n".join(denied)


@asynccontextmanager
async def gated(policy: Mapping[str, Any], *urls: str, **known: Any) -> AsyncIterator[tuple[Gate, list[Proxy]]]:
    """A gate with one proxy before each server. Leaving it checks; what was denied is told before what came of it."""
    gate = Gate(policy, **known)
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(proxy_to(url)) for url in urls]
        for proxy in proxies:
            gate.stand_before(proxy)
        try:
            yield gate, proxies
        except BaseException:
            gate.check_denied()
            raise
        gate.check()
