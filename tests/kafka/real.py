"""Apache Kafka itself (KRaft), started for tests: one node or three, on free loopback ports, stopped by pid.

with Kafka(tmp_path) as kafka:
    AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap)
"""

import atexit
import base64
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.kafka.jars import jars, locked
from tests.kafka.security import LISTENERS, Security

JAVA = (
    "java",
    "-Xmx400m",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
    "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
FEW = {
    "num.network.threads": "2",
    "num.io.threads": "4",
    "num.recovery.threads.per.data.dir": "1",
    "log.cleaner.threads": "1",
    "log.cleaner.backoff.ms": "200",
    "background.threads": "2",
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "group.min.session.timeout.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "controlled.shutdown.enable": "true",
    "log.segment.delete.delay.ms": "1000",
}
"""Few threads and partitions, short periods: starting is quick, and a dead node is found dead in 3 s instead of 9."""

START_SECONDS = 60


class Kafka:
    """A cluster in `directory` of 1 or 3 nodes, numbered from 1. `properties` go to every node's server.properties.

    With `security`, listeners for TLS, mutual TLS and SASL are there as well; `addresses` has every listener's
    bootstrap string by its name in `LISTENERS`. Raises RuntimeError with the end of the log if a node does not start.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 1,
        properties: Mapping[str, str] | None = None,
        security: Security | None = None,
        classes: str | None = None,
    ) -> None:
        self.directory, self.security = directory, security
        self._classes = classes  # another flag of Java in place of that for the archive
        self._properties = dict(properties or {})
        self._listeners = ["plaintext", *(LISTENERS if security else ())]
        numbers = range(1, nodes + 1)
        ports = free_ports(nodes * (len(self._listeners) + 1))
        self._controllers = {number: ports.pop() for number in numbers}
        self._ports = {number: {name: ports.pop() for name in self._listeners} for number in numbers}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
        self.addresses = {
            name: ",".join(f"127.0.0.1:{self._ports[number][name]}" for number in numbers) for name in self._listeners
        }
        self.bootstrap = self.addresses["plaintext"]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def nodes(self) -> Sequence[int]:
        """The numbers of the nodes."""
        return list(self._ports)

    def start(self, *numbers: int) -> None:
        """Start these nodes, or all that do not run, and wait until each answers.

        On Linux a node dies with the thread that started it: use one that lasts.
        """
        numbers = numbers or tuple(self._ports)
        atexit.register(self.kill)
        starting = [number for number in numbers if not self.runs(number)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._format, starting))
        for number in starting:
            with self.log(number).open("ab") as log:
                command = [*dies_with_us(), *self._java(), "kafka.Kafka", str(self._config(number))]
                self._processes[number] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        for number in starting:
            self._wait(number)

    def runs(self, number: int) -> bool:
        """Whether the node's process is alive (paused or not)."""
        process = self._processes.get(number)
        return process is not None and process.poll() is None

    def stop(self, *numbers: int) -> None:
        """Stop these nodes in order, or all: leaders move away first."""
        self._end(signal.SIGTERM, numbers)

    def kill(self, *numbers: int) -> None:
        """Kill these nodes, or all, as a power cut would."""
        self._end(signal.SIGKILL, numbers)

    def pause(self, *numbers: int) -> None:
        """Stop the nodes' clocks: connections stay, nobody answers."""
        for number in numbers or tuple(self._processes):
            self._processes[number].send_signal(signal.SIGSTOP)

    def resume(self, *numbers: int) -> None:
        """Let paused nodes go on."""
        for number in numbers or tuple(self._processes):
            self._processes[number].send_signal(signal.SIGCONT)

    def restart(self, *numbers: int) -> None:
        """Stop and start these nodes, or all, on the same ports and data."""
        self.stop(*numbers)
        self.start(*numbers)

    def log(self, number: int) -> Path:
        """What the node has printed."""
        return self.directory / f"node-{number}.log"

    def _end(self, signal_: signal.Signals, numbers: tuple[int, ...]) -> None:
        ending = [self._processes[number] for number in numbers or tuple(self._processes) if self.runs(number)]
        for process in ending:
            process.send_signal(signal_)
            process.send_signal(signal.SIGCONT)  # a paused one would not hear SIGTERM
        for process in ending:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # the last node of a quorum waits for the others in vain
                process.kill()
                process.wait()

    def _java(self) -> list[str]:
        return [*JAVA, self._classes or f"-XX:SharedArchiveFile={loaded_classes()}", "-cp", f"{jars()}/*"]

    def _config(self, number: int) -> Path:
        return self.directory / f"node-{number}.properties"

    def _format(self, number: int) -> None:
        data = self.directory / f"data-{number}"
        if (data / "meta.properties").exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = [f"{key}={value}" for key, value in self._settings(number, data).items()]
        self._config(number).write_text("\n".join(lines) + "\n")
        tool = [*self._java(), "kafka.tools.StorageTool", "format", "-t", self._cluster]
        users = self.security.scram_users() if self.security else []
        done = subprocess.run(
            [*tool, "-c", str(self._config(number)), *users], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"StorageTool could not format {data}:\n{done.stdout}{done.stderr}")

    def _settings(self, number: int, data: Path) -> dict[str, str]:
        ports = self._ports[number]
        urls = ",".join(f"{name.upper()}://127.0.0.1:{port}" for name, port in ports.items())
        kinds = {"plaintext": "PLAINTEXT", **LISTENERS}
        copies, least = ("3", "2") if len(self._ports) > 1 else ("1", "1")
        return {
            "process.roles": "broker,controller",
            "node.id": str(number),
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{port}" for n, port in self._controllers.items()),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": f"{urls},CONTROLLER://127.0.0.1:{self._controllers[number]}",
            "advertised.listeners": urls,
            "listener.security.protocol.map": ",".join(f"{name.upper()}:{kinds[name]}" for name in ports)
            + ",CONTROLLER:PLAINTEXT",
            "log.dirs": str(data),
            "log.retention.ms": "-1",  # tests have event times of long ago, and the next look for old records is near
            "default.replication.factor": copies,
            "min.insync.replicas": least,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": least,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": least,
            **FEW,
            **(self.security.properties() if self.security else {}),
            **self._properties,
        }

    def _wait(self, number: int) -> None:
        until = time.monotonic() + START_SECONDS
        while not answers(self._ports[number]["plaintext"]):
            if not self.runs(number) or time.monotonic() > until:
                tail = self.log(number).read_text(errors="replace")[-4000:]
                self.kill()
                raise RuntimeError(f"Kafka node {number} in {self.directory} did not start:\n{tail}")
            time.sleep(0.05)


@cache
def loaded_classes() -> Path:
    """The classes of a broker that has started, as Java keeps them for the next: that halves the time to start.

    Made once on a machine, for its Java. Java takes no notice of an archive that does not fit.
    """
    java = hashlib.sha256(os.fsencode(Path(shutil.which("java") or "java").resolve())).hexdigest()[:8]
    ready = jars().parent / f"{jars().name}-{java}.jsa"
    if not ready.exists():
        with locked(ready):
            if not ready.exists():
                with tempfile.TemporaryDirectory(dir=ready.parent, prefix="draft-") as draft:
                    made = Path(draft) / "classes.jsa"
                    with Kafka(Path(draft), classes=f"-XX:ArchiveClassesAtExit={made}"):
                        pass  # Java writes the archive when the broker has stopped
                    made.rename(ready)
    return ready


def answers(port: int) -> bool:
    """Whether a broker on this port answers a request (which version of which request do you know?)."""
    request = struct.pack(">ihhih", 10, 18, 0, 1, -1)  # ApiVersions v0, no client id
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request)
        return len(connection.recv(8)) == 8
    return False


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has just now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def dies_with_us() -> list[str]:
    """A prefix by which the kernel kills the broker when the tests are killed (Linux); else only atexit does."""
    return ["setpriv", "--pdeathsig", "KILL"] if os.name == "posix" and shutil.which("setpriv") else []
