"""A network that can be cut: one port for each worker, whose traffic to a broker stands still or is torn.

A broker tells its clients where to find it, so each proxy needs a listener of its own that advertises the proxy's port.
"""

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Self

from tests.kafka.real import Kafka, free_ports


class Wire:
    """What goes between one worker and the broker. Its methods may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, behind: int) -> None:
        self.port, self._behind, self._loop = port, behind, loop
        self._whole = asyncio.Event()
        self._whole.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._age = 0

    async def serve(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    def cut(self) -> None:
        """From now on nothing comes through; who connects hears nothing."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def swallow(self) -> None:
        """Whatever is sent by a connection that there is now is never heard of, as by one that is half open."""

        def do() -> None:
            self._age += 1

        self._loop.call_soon_threadsafe(do)

    def mend(self, *, torn: bool) -> None:
        """Go on: with what was under way, or (`torn`) with new connections only."""

        def do() -> None:
            if torn:
                for writer in self._open:
                    writer.transport.abort()
            self._whole.set()

        self._loop.call_soon_threadsafe(do)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await self._whole.wait()
            theirs, to_them = await asyncio.open_connection("127.0.0.1", self._behind)
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


class WiredKafka(Kafka):
    """A broker of one node with `count` more listeners, each behind a wire of its own."""

    def __init__(self, directory: Path, count: int) -> None:
        super().__init__(directory)
        ports = free_ports(2 * count)
        self._behind, fronts = ports[:count], ports[count:]
        self._loop = asyncio.new_event_loop()
        self.wires = [Wire(self._loop, front, behind) for front, behind in zip(fronts, self._behind, strict=True)]
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for wire in self.wires:
            asyncio.run_coroutine_threadsafe(wire.serve(), self._loop).result(10)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _settings(self, number: int, data: Path) -> dict[str, str]:
        settings = super()._settings(number, data)
        for n, (wire, port) in enumerate(zip(self.wires, self._behind, strict=True)):
            settings["listeners"] += f",WIRE{n}://127.0.0.1:{port}"
            settings["advertised.listeners"] += f",WIRE{n}://127.0.0.1:{wire.port}"
            settings["listener.security.protocol.map"] += f",WIRE{n}:PLAINTEXT"
        return settings
