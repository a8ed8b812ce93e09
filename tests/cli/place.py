"""A directory to type commands in: within this process, which is quick, or in a real one."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

APP = """
from collections.abc import AsyncIterator
import flowkit
from flowkit import Closed, Stream, Tumbling, minutes, seconds

app = flowkit.App("shop")

class Sale(flowkit.Record):
    user: str
    amount: float
    at: int

class Big(flowkit.Record):
    user: str
    amount: float

class Total(flowkit.Record):
    n: int = 0
    sum: float = 0.0

class Report(flowkit.Record):
    user: str
    end: int
    sum: float

sales = app.topic("sales", Sale, key="user", time="at", out_of_order=seconds(5))
unread = app.topic("unread", Sale)
big = app.topic("big", Big, key="user")
reports = app.sink("reports", Report)
totals = app.table("totals", str, Total, window=Tumbling(minutes(1)))
seen = app.table("seen", str, int)

@app.agent(sales, tables=[totals, seen], sinks=[big])
async def add(stream: Stream[Sale]) -> AsyncIterator[Big]:
    async for sale in stream:
        if sale.amount < 0:
            raise ValueError(f"negative amount {sale.amount}")
        total = totals[sale.user]
        total.n += 1
        total.sum += sale.amount
        seen[sale.user] += 1
        if sale.amount >= 100:
            yield Big(sale.user, sale.amount)

@app.each(totals.closed, sinks=[reports])
def report(window: Closed[str, Total]) -> Report:
    return Report(window.key, window.end, window.value.sum)
"""


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


class Place:
    """The directory `path`, which is the current one."""

    def __init__(self, path: Path, call: Callable[[list[str]], Done]) -> None:
        self.path = path
        self._call = call

    def write(self, name: str, content: str | bytes) -> Path:
        """A file; text is dedented."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else textwrap.dedent(content).lstrip("\n").encode()
        path.write_bytes(data)
        return path

    def lines(self, name: str, *values: Any) -> Path:
        """A file of JSON lines; bytes stand for themselves."""
        return self.write(
            name, b"".join([v if isinstance(v, bytes) else json.dumps(v).encode() + b"\n" for v in values])
        )

    def read(self, name: str) -> list[Any]:
        """The JSON lines of a file."""
        return [json.loads(line) for line in (self.path / name).read_bytes().splitlines()]

    def app(self, text: str = APP, name: str = "app.py") -> None:
        """The app that commands are tried on."""
        self.write(name, text)

    def call(self, *words: str) -> Done:
        """Run a command within this process."""
        return self._call(list(words))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "flowkit.cli", *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}

    def spawn(self, *words: str, **keywords: Any) -> "subprocess.Popen[bytes]":
        """Start a command in a process of its own."""
        keywords = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **keywords}
        return subprocess.Popen(self.command(*words), cwd=self.path, env=self.environment(), **keywords)

    def run(self, *words: str, stdin: bytes = b"", prefix: Sequence[str] = (), **keywords: Any) -> Done:
        """Run a command in a process of its own to its end; `prefix` is a command that runs commands."""
        keywords = {"capture_output": True, "cwd": self.path, "env": self.environment(), **keywords}
        done = subprocess.run([*prefix, *self.command(*words)], input=stdin, timeout=60, check=False, **keywords)
        return Done(done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode())


def sale(user: str = "ann", amount: float = 1.0, at: Any = 0) -> dict[str, Any]:
    """A record of the app above."""
    return {"user": user, "amount": amount, "at": at}


def until(condition: Callable[[], Any]) -> None:
    """Look until the condition holds, for at most 40 s."""
    end = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)
