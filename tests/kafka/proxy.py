"""A network that can be cut: one port for each worker and node, whose traffic stands still or is torn.

A broker tells its clients where to find it, so each worker needs a listener of its own at each node, which advertises
the proxy's port.
"""

import asyncio
import contextlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from tests.kafka.real import Kafka, free_ports


class Way(Protocol):
    """What lies between one worker and the nodes of a cluster. Without `nodes` it is about all of them."""

    bootstrap: str
    """Where the worker finds the cluster."""
    prefix: Sequence[str]
    """What its command has to begin with."""

    def cut(self, *nodes: int) -> None:
        """From now on nothing comes through; who connects hears nothing."""

    def mend(self, *nodes: int, torn: bool) -> None:
        """Go on: with what was under way, or (`torn`) with new connections only."""


class Wire:
    """What goes between one worker and one node. Its methods may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, behind: int) -> None:
        self.port, self.behind, self._loop = port, behind, loop
        self._whole = asyncio.Event()
        self._whole.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._age = 0

    async def serve(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self._whole.clear)

    def swallow(self) -> None:
        """Whatever is sent by a connection that there is now is never heard of, as by one that is half open."""

        def do() -> None:
            self._age += 1

        self._loop.call_soon_threadsafe(do)

    def mend(self, *, torn: bool) -> None:
        def do() -> None:
            if torn:
                for writer in self._open:
                    writer.transport.abort()
            self._whole.set()

        self._loop.call_soon_threadsafe(do)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await self._whole.wait()
            theirs, to_them = await asyncio.open_connection("127.0.0.1", self.behind)
            self._open |= {writer, to_them}
            try:
                await asyncio.gather(self._pump(reader, to_them), self._pump(theirs, writer))
            finally:
                self._open -= {writer, to_them}
                to_them.close()
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        age = self._age
        try:
            while data := await reader.read(2**16):
                await self._whole.wait()
                if age != self._age:
                    continue
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


class WiredWay:
    """The wires of one worker, by node."""

    prefix: Sequence[str] = ()

    def __init__(self, wires: Mapping[int, Wire]) -> None:
        self.wires = wires
        self.bootstrap = ",".join(f"127.0.0.1:{wire.port}" for wire in wires.values())

    def cut(self, *nodes: int) -> None:
        for node in nodes or self.wires:
            self.wires[node].cut()

    def mend(self, *nodes: int, torn: bool) -> None:
        for node in nodes or self.wires:
            self.wires[node].mend(torn=torn)


class WiredKafka(Kafka):
    """A cluster each of whose nodes has `count` more listeners, each behind a wire of its own."""

    def __init__(self, directory: Path, count: int, nodes: int = 1) -> None:
        super().__init__(directory, nodes=nodes)
        ports = free_ports(2 * count * nodes)
        self._loop = asyncio.new_event_loop()
        self._ways = [
            WiredWay({node: Wire(self._loop, ports.pop(), ports.pop()) for node in self.nodes}) for _ in range(count)
        ]
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)

    @property
    def wires(self) -> Sequence[Wire]:
        """By worker the one to the first node."""
        return [next(iter(way.wires.values())) for way in self._ways]

    @property
    def ways(self) -> Sequence[Way]:
        """One for each worker."""
        return self._ways

    def __enter__(self) -> Self:
        self._thread.start()
        for way in self._ways:
            for wire in way.wires.values():
                asyncio.run_coroutine_threadsafe(wire.serve(), self._loop).result(10)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _settings(self, number: int, data: Path) -> dict[str, str]:
        settings = super()._settings(number, data)
        for n, way in enumerate(self._ways):
            wire = way.wires[number]
            settings["listeners"] += f",WIRE{n}://127.0.0.1:{wire.behind}"
            settings["advertised.listeners"] += f",WIRE{n}://127.0.0.1:{wire.port}"
            settings["listener.security.protocol.map"] += f",WIRE{n}:PLAINTEXT"
        return settings
