"""What befalls workers, their disks, their network and their broker."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.integration.processes import Crew, Process
from tests.kafka.proxy import Way
from tests.kafka.real import Kafka
from tests.kafka.torture_nodes import NODE_DEEDS, Nodes

APP = str(Path(__file__).with_name("torture_app.py"))
LEASE_MS = 3_000
GRACE_MS = 15_000
SHARED_OUT = '"event": "tasks shared out"'
DISK_BYTES = 48 * 2**20

DEEDS = (
    "kill",
    "kill_all",
    "pause",
    "pause_heir",
    "term",
    "join",
    "wipe",
    "cut",
    "fill_disk",
    "broker_pause",
    "broker_restart",
    "broker_kill",
    "blackout",
)
DEEDS_OF_THREE = (*(deed for deed in DEEDS if deed not in ("broker_restart", "blackout")), *NODE_DEEDS)
"""A cluster of three is not stopped as a whole in good order: its last node would wait for the others in vain."""
NAMES = ("ada", "bob", "cyd", "dan", "eve", "fay", "gil", "hal")


class Slot:
    """One of the workers, over all its lives."""

    def __init__(self, number: int, state: Path, processes: int) -> None:
        self.number, self.name, self.state, self.processes = number, NAMES[number], state, processes
        self.process: Process
        self.lives = 0
        self.full = False


class Nemesis:
    """Starts the workers and torments them; every choice is drawn from `chance`. `done` is what it did."""

    def __init__(
        self,
        crew: Crew,
        kafka: Kafka,
        chance: random.Random,
        *,
        app: str,
        workers: int,
        ways: Sequence[Way] = (),
        env: Mapping[str, str] | None = None,
        sabotage: Sequence[str] = (),
        supervisor: bool = False,
        checkpoints: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.crew, self.kafka, self.chance, self.app, self.say = crew, kafka, chance, app, say
        self.ways, self.env = ways, dict(env or {})
        self.nodes = Nodes(kafka, ways, chance, app, say)
        self.checkpoints = checkpoints
        self.sabotage = ",".join(sabotage)
        self.done: list[str] = []
        self.complaints: list[str] = []
        self._disks: list[Path] = []
        self.slots = [
            self._slot(n, 2 if supervisor and not sabotage and n == workers - 1 else 1) for n in range(workers)
        ]
        self.guest = self._slot(workers, 1)
        if self.slots:
            self._give_disk(self.slots[0])
        for slot in self.slots:
            self.start(slot)

    def _slot(self, number: int, processes: int) -> Slot:
        return Slot(number, self.crew.directory / f"state-{NAMES[number]}", processes)

    def add(self, count: int) -> list[Slot]:
        """More workers, which are not started yet."""
        added = [self._slot(len(self.slots) + n, 1) for n in range(count)]
        self.slots += added
        return added

    def close(self) -> None:
        """Let everybody go on, so that they can be ended, and give the disks back."""
        for way in self.ways:
            way.mend(torn=False)
        for slot in [*self.slots, self.guest]:
            if slot.lives:
                for pid in [slot.process.pid, *_children(slot.process.pid)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                        if slot.processes > 1:
                            os.kill(pid, signal.SIGKILL)
                slot.process.kill()
        for disk in self._disks:
            subprocess.run(["umount", "-l", str(disk)], check=False)

    @property
    def states(self) -> list[Path]:
        """All state directories: of a supervisor, those of its workers."""
        own = [slot.state for slot in [*self.slots, self.guest]]
        return own + [child for state in own for child in sorted(state.glob("process-*"))]

    # Workers

    def start(self, slot: Slot, env: dict[str, str] | None = None) -> None:
        """Begin a life of a worker."""
        slot.lives += 1
        slot.state.mkdir(exist_ok=True)
        how = ["-m", "flowkit"] if not self.sabotage else ["-m", "tests.kafka.sabotage", self.sabotage]
        way = self.ways[slot.number] if self.ways else None
        address = way.bootstrap if way else self.kafka.bootstrap
        words = [*how, "worker", APP, "--broker", f"kafka://{address}?timeout_ms=5000", "--state", str(slot.state)]
        words += ["--bind", f"ledger={self.crew.directory}/ledger-{{partition}}.jsonl"]
        words += ["--processes", str(slot.processes)] if slot.processes > 1 else []
        settings = {"COMMIT_INTERVAL": "100", "LEASE_TTL": f"{LEASE_MS}", "GRACE": f"{GRACE_MS}"}
        settings |= {"STALL_AFTER": "30000", "PARTITIONS": "3"}
        if self.checkpoints:
            settings |= {"CHECKPOINTS": str(self.crew.directory / "checkpoints"), "CHECKPOINT_INTERVAL": "2000"}
        variables = {f"FLOWKIT_{name}": value for name, value in settings.items()} | {"TORTURE_APP": self.app}
        variables |= self.env | dict(env or {})
        prefix = way.prefix if way else ()
        slot.process = self.crew.start(f"{slot.name}-{slot.lives}", *words, env=variables, prefix=prefix)

    def restart(self, slot: Slot) -> None:
        """Start it again, perhaps after the others have noticed."""
        time.sleep(self.chance.choice([0.0, 0.0, 1.0, LEASE_MS / 1000 + 1]))
        self.start(slot)

    def stop(self, slot: Slot) -> None:
        """SIGTERM, after which it has to end by itself, in good order."""
        process = slot.process
        until = time.monotonic() + 60
        said = "worker process started" if slot.processes > 1 else "worker started"
        while not _heard(slot.process, said) and time.monotonic() < until and process.popen.poll() is None:
            time.sleep(0.05)  # before that a signal ends it as it ends any process
        if process.popen.poll() == 3 and not _heard(process, said):
            return  # it found no broker when it started
        began = time.monotonic()
        process.send(signal.SIGTERM)
        limit = GRACE_MS / 1000 + 20
        try:
            code = process.popen.wait(limit)
        except subprocess.TimeoutExpired:
            self.complain(slot, f"did not end within {limit:g} s of SIGTERM")
            process.kill()
            return
        if code != 0:
            self.complain(slot, f"ended by SIGTERM with {code} after {time.monotonic() - began:.1f} s")

    def complain(self, slot: Slot, what: str) -> None:
        last = "\n    ".join(slot.process.said().splitlines()[-12:])
        self.complaints.append(f"{slot.name}, life {slot.lives}: {what}; it last said:\n    {last}")
        self.say(f"  {slot.name} {what}")

    def stop_all(self) -> None:
        """The clean end."""
        for slot in self.slots:
            self.stop(slot)

    def report(self) -> str:
        """What every worker said last."""
        said = []
        for slot in self.slots:
            last = "\n    ".join(line[:1_000] for line in slot.process.said().splitlines()[-8:])
            said.append(f"{slot.name}, life {slot.lives} (exit {slot.process.popen.poll()}):\n    {last}")
        return "\n".join(said)

    # Deeds

    def rage(self, seconds: float, deeds: Sequence[str]) -> None:
        """Do the deeds, all before one comes again, until the time is up."""
        if self.sabotage:
            self._wait_for_work(60)
        until = time.monotonic() + seconds
        time.sleep(min(4.0, seconds / 4))
        bag: list[str] = []
        while time.monotonic() < until:
            if not bag:
                bag = list(deeds)
                self.chance.shuffle(bag)
            deed, slot = bag.pop(), self.chance.choice(self.slots)
            if self.sabotage:  # these runs are short: no deed may be wasted on those who are not at work yet
                self._wait_for_work(15)
            self.say(f"{deed} ({slot.name})")
            self._do(deed, slot)
            self.done.append(deed)
            self._look()
            time.sleep(self.chance.uniform(0.3, 2.5))
        self._look()

    def _do(self, deed: str, slot: Slot) -> None:
        if deed in NODE_DEEDS:
            getattr(self.nodes, deed)()
        else:
            getattr(self, deed)(slot)

    def _wait_for_work(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not all(_heard(slot.process, "task opened") for slot in self.slots):
            time.sleep(0.1)
        time.sleep(1)

    def _look(self) -> None:
        """A worker that has ended without being told to is a complaint; it comes again, as a supervisor would do.

        One that finds no broker when it starts ends, and says so by its exit code.
        """
        for slot in self.slots:
            code = slot.process.popen.poll()
            if code is not None:
                if code != 3 or _heard(slot.process, "worker started"):
                    self.complain(slot, f"ended by itself with {code}")
                self.start(slot)

    def kill(self, slot: Slot) -> None:
        """SIGKILL of one worker; of a supervisor's, one of its workers."""
        children = _children(slot.process.pid) if slot.processes > 1 else []
        if children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(children), signal.SIGKILL)
            return
        slot.process.kill()
        self.restart(slot)

    def kill_all(self, _slot: Slot) -> None:
        """SIGKILL of all workers at once, as if the power went."""
        for slot in self.slots:
            slot.process.send(signal.SIGKILL)
        for slot in self.slots:
            slot.process.kill()
            self.start(slot)

    def pause(self, slot: Slot) -> None:
        """SIGSTOP for longer than a session lasts: it wakes as a zombie."""
        pids = self._stand_still(slot)
        time.sleep(LEASE_MS / 1000 * (2.5 if self.sabotage else self.chance.choice([0.5, 1.5, 2.5])))
        _go_on(pids)

    def pause_heir(self, slot: Slot) -> None:
        """SIGKILL of one worker; another stands still while it opens what is left to it, and it goes to a third."""
        heir = self.chance.choice([each for each in self.slots if each is not slot])
        rounds = heir.process.said().count(SHARED_OUT)
        slot.process.kill()
        until = time.monotonic() + LEASE_MS / 1000 * 5
        while heir.process.said().count(SHARED_OUT) == rounds and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1.0 if self.sabotage else self.chance.uniform(0.0, 0.5))
        pids = self._stand_still(heir)
        self.start(slot)
        time.sleep(LEASE_MS / 1000 * 3)
        _go_on(pids)

    def _stand_still(self, slot: Slot) -> list[int]:
        pids = [slot.process.pid, *_children(slot.process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        return pids

    def term(self, slot: Slot) -> None:
        """SIGTERM, and another life."""
        self.stop(slot)
        self.restart(slot)

    def join(self, _slot: Slot) -> None:
        """One more worker for a while."""
        self.start(self.guest)
        time.sleep(self.chance.uniform(3, 6))
        self.stop(self.guest)

    def wipe(self, slot: Slot) -> None:
        """SIGKILL, and its disk is lost."""
        for pid in _children(slot.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        slot.process.kill()
        for path in slot.state.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.restart(slot)

    def cut(self, slot: Slot) -> None:
        """The network of one worker is cut, then mended, connections kept or torn."""
        way = self.ways[slot.number]
        way.cut()
        time.sleep(LEASE_MS / 1000 * self.chance.choice([0.5, 1.5, 2.5]))
        way.mend(torn=self.chance.random() < 0.5)

    def fill_disk(self, _slot: Slot) -> None:
        """The disk of the first worker is full for some seconds (a small one of its own, where it can be mounted)."""
        if not self._disks:
            self.say("  NO DISK CAN BE FILLED HERE: mounting a tmpfs needs root")
            return
        ballast = self._disks[0] / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 2**16)
        time.sleep(self.chance.uniform(2, 5))
        ballast.unlink()

    def broker_pause(self, _slot: Slot) -> None:
        """The broker stands still."""
        self.kafka.pause()
        time.sleep(self.chance.choice([2.0, LEASE_MS / 1000 + 2]))
        self.kafka.resume()

    def broker_restart(self, _slot: Slot) -> None:
        """The broker is stopped in good order, and started."""
        self.kafka.restart()

    def broker_kill(self, _slot: Slot) -> None:
        """SIGKILL of the broker, and it is started again."""
        self.kafka.kill()
        time.sleep(self.chance.choice([0.0, 3.0]))
        self.kafka.start()

    def blackout(self, _slot: Slot) -> None:
        """The broker is stopped in good order, and meanwhile all workers are killed: whatever it forgot, stays so."""
        self.kafka.stop()
        for slot in self.slots:
            slot.process.send(signal.SIGKILL)
        self.kafka.start()
        for slot in self.slots:
            slot.process.kill()
            self.start(slot)

    def _give_disk(self, slot: Slot) -> None:
        disk = self.crew.directory / f"disk-{slot.name}"
        disk.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "torture", str(disk)], check=False, capture_output=True
        )
        if done.returncode == 0:
            self._disks.append(disk)
            slot.state = disk / "state"


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def _go_on(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _heard(process: Process, event: str) -> bool:
    """Whether it has logged that; the workers of a supervisor may write into each other's lines."""
    return f'"event": "{event}"' in process.said()
