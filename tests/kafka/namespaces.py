"""A network that can be cut, by Linux: each worker in a network namespace of its own, and rules that drop packets.

    this process, in a namespace in which nothing is but its loopback interface
        10.99.0.1       the nodes' listeners for workers
        10.99.N.1  ──── 10.99.N.2     worker N, alone in its namespace

What is dropped is told to nobody: connections stay, TCP sends again and again, and who connects waits. Needs `ip`,
`iptables`, `nsenter` and `unshare`, and root, or a system that lets users make namespaces. `enter` has to come first.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.kafka.proxy import Way
from tests.kafka.real import Kafka, dies_with_us, free_ports

INSIDE = "TORTURE_INSIDE"
HOST = "10.99.0.1"
TORN_SECONDS = 1.5
"""For so long a torn connection is answered by resets: TCP has sent something again by then."""


@functools.cache
def permitted() -> bool:
    """Whether namespaces can be made here."""
    if not all(shutil.which(tool) for tool in ("ip", "iptables", "nsenter", "unshare")):
        return False
    check = "ip link set lo up && iptables -w -A INPUT -p tcp -j REJECT --reject-with tcp-reset && unshare -n true"
    done = subprocess.run([*_unshare(), "sh", "-c", check], capture_output=True, check=False)
    return done.returncode == 0


def inside() -> bool:
    """Whether this process is in a namespace by `enter`."""
    return INSIDE in os.environ


def enter(words: Sequence[str]) -> None:
    """Become `python WORDS` in a new namespace."""
    os.environ[INSIDE] = "1"
    up = 'ip link set lo up && ip addr add "$0/32" dev lo && exec "$@"'
    command = [*_unshare(), "sh", "-c", up, HOST, sys.executable, *words]
    os.execvp(command[0], command)


def _unshare() -> list[str]:
    """With mounts of its own too: who makes namespaces as a user may mount in them."""
    return ["unshare", "-nm"] if os.geteuid() == 0 else ["unshare", "-rnm"]


class Lane:
    """The way of worker `number`, whose namespace lasts as long as `holder`."""

    def __init__(self, number: int, ports: dict[int, int]) -> None:
        self.net, self.ports = f"10.99.{number + 1}", ports
        self.bootstrap = ",".join(f"{HOST}:{port}" for port in ports.values())
        self.holder = subprocess.Popen([*dies_with_us(), "unshare", "-n", "sleep", "infinity"])
        own, there = Path("/proc/self/ns/net"), Path(f"/proc/{self.holder.pid}/ns/net")
        while there.readlink() == own.readlink():
            time.sleep(0.01)
        self.prefix: Sequence[str] = ["nsenter", f"--net={there}", "--"]
        mine, theirs = f"host{number}", f"worker{number}"
        _run("ip", "link", "add", mine, "type", "veth", "peer", "name", theirs, "netns", str(self.holder.pid))
        _run("ip", "addr", "add", f"{self.net}.1/24", "dev", mine)
        _run("ip", "link", "set", mine, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{self.net}.2/24", "dev", theirs),
            ("link", "set", theirs, "up"),
            ("route", "add", "default", "via", f"{self.net}.1"),
        ):
            _run(*self.prefix, "ip", *words)

    def cut(self, *nodes: int) -> None:
        self._rules("-I", nodes, "DROP", "DROP")

    def mend(self, *nodes: int, torn: bool) -> None:
        """Rules that are not there are none to take away."""
        if torn:
            reset = ("REJECT", "--reject-with", "tcp-reset")
            self._in("-I", nodes, *reset)
            self._rules("-D", nodes, "DROP", "DROP")
            time.sleep(TORN_SECONDS)
            self._in("-D", nodes, *reset)
        else:
            self._rules("-D", nodes, "DROP", "DROP")

    def _rules(self, action: str, nodes: Sequence[int], in_: str, out: str) -> None:
        self._in(action, nodes, in_)
        for node in nodes or self.ports:
            where = ("-p", "tcp", "-d", f"{self.net}.0/24", "--sport", str(self.ports[node]))
            _try("iptables", "-w", action, "OUTPUT", *where, "-j", out)

    def _in(self, action: str, nodes: Sequence[int], *target: str) -> None:
        for node in nodes or self.ports:
            where = ("-p", "tcp", "-s", f"{self.net}.0/24", "--dport", str(self.ports[node]))
            _try("iptables", "-w", action, "INPUT", *where, "-j", *target)

    def close(self) -> None:
        """With its last process the namespace goes, and with it both ends."""
        self.holder.kill()
        self.holder.wait()
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("ip", "link", "del", f"host{int(self.net.rpartition('.')[2]) - 1}")


class LanedKafka(Kafka):
    """A cluster each of whose nodes has one more listener, for `count` workers in namespaces of their own."""

    def __init__(self, directory: Path, count: int, nodes: int = 1) -> None:
        assert inside(), "`enter` a namespace first"
        super().__init__(directory, nodes=nodes)
        self._count = count
        self._laned = dict(zip(self.nodes, free_ports(nodes), strict=True))
        self._lanes: list[Lane] = []

    @property
    def ways(self) -> Sequence[Way]:
        """One for each worker."""
        return self._lanes

    def __enter__(self) -> Self:
        self._lanes = [Lane(number, self._laned) for number in range(self._count)]
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self.kill()
        for lane in self._lanes:
            lane.close()

    def _settings(self, number: int, data: Path) -> dict[str, str]:
        settings = super()._settings(number, data)
        url = f",LANE://{HOST}:{self._laned[number]}"
        settings["listeners"] += url
        settings["advertised.listeners"] += url
        settings["listener.security.protocol.map"] += ",LANE:PLAINTEXT"
        return settings


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _try(*words: str) -> None:
    subprocess.run(words, check=False, capture_output=True)
