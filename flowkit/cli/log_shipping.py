"""FLOWKIT_LOGS=logs://GROUP/STREAM: log lines to CloudWatch Logs, beside stderr, by a thread of their own.

A container needs none of this: the awslogs driver or FireLens carry what stands on stderr. It is for machines that have
no agent. {host} and {pid} in the URL are filled in. What was said waits in memory, bounded, until the service has taken
it: nobody who says something waits. What finds no room is dropped, and how much was is told, here and there.
"""

import asyncio
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import structlog

from flowkit.aws import Right
from flowkit.errors import ConfigError, FlowkitError
from flowkit.sink import destination

log = structlog.get_logger("flowkit.logs")

ROOM_LINES, ROOM_BYTES = 10_000, 8 << 20
EVERY_SECONDS = 1.0
LAST_SECONDS = 5.0
"""So long the end of the process waits for what is left to be taken."""


def rights_of_logs(url: str) -> Sequence[Right]:
    """What has to be allowed for it, on whatever machine. Raises ConfigError for what is no such place."""
    found = _destination(url, host=_ANY, pid=_ANY).rights()
    return [right._replace(resource=right.resource.replace(_ANY, "*")) for right in found]


_ANY = "any-host-or-pid"


def _destination(url: str, **words: str) -> Any:
    place = url
    for name, word in words.items():
        place = place.replace(f"{{{name}}}", word)
    if not place.startswith("logs://"):
        raise ConfigError(f"FLOWKIT_LOGS={url}: needs logs://GROUP/STREAM")
    found = destination(place, None)
    found.check()
    return found


class Shipper:
    """Carries lines to where `url` leads, once it is started. Raises ConfigError for what is no such place."""

    def __init__(self, url: str, *, room: int = ROOM_LINES, every: float = EVERY_SECONDS) -> None:
        self._destination: Any = _destination(url, host=socket.gethostname(), pid=str(os.getpid()))
        self.where: str = self._destination.where
        self._room, self._every = room, every
        self._lines: deque[tuple[int, str]] = deque()
        self._bytes = 0
        self.sent = self.dropped = 0
        self._told = 0
        self._lock = threading.Lock()
        self._wake, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="log lines", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put(self, line: str) -> None:
        """Take a line, or drop it if there is no room: at once in either case."""
        with self._lock:
            if len(self._lines) >= self._room or self._bytes + len(line) > ROOM_BYTES:
                self.dropped += 1
                return
            self._lines.append((time.time_ns() // 1_000_000, line))
            self._bytes += len(line)

    def processor(self, _logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        """Of structlog: what is said goes on, and a copy of it as JSON to be sent."""
        copy = dict(event) if not event.get("exc_info") else structlog.processors.format_exc_info(None, "", dict(event))
        self.put(str(structlog.processors.JSONRenderer(default=str)(None, "", copy)))
        return event

    def stop(self, patience: float = LAST_SECONDS) -> None:
        """Send what is left, for as long as that."""
        if not self._thread.is_alive():
            return
        self._over = True
        self._wake.set()
        self._thread.join(patience)
        left = len(self._lines)
        if left or self.dropped > self._told:
            print(
                f"flowkit: {self.where}: {left + self.dropped - self._told} log lines were not sent",
                file=sys.stderr,
            )

    # The thread

    def _run(self) -> None:
        try:
            asyncio.run(self._ship())
        except FlowkitError as error:
            log.error("log lines are sent no more", to=self.where, reason=str(error))  # noqa: TRY400

    async def _ship(self) -> None:
        async with self._destination as to:
            while True:
                over = self._over
                await self._send(to)
                if over and not self._lines:
                    return
                if not over:
                    await asyncio.to_thread(self._wake.wait, self._every)

    async def _send(self, to: Any) -> None:
        if self.dropped > self._told:
            told, self._told = self._told, self.dropped
            log.warning("log lines were dropped: they came faster than they are taken", lines=self.dropped - told)
        with self._lock:
            lines = list(self._lines)
        if not lines:
            return
        refused = await to.put(lines)
        with self._lock:  # not before they were taken: what is being sent takes room
            for _ in lines:
                self._bytes -= len(self._lines.popleft()[1])
            self.sent += len(lines) - refused
            self.dropped += refused
