"""What only the memory broker promises: it is gone with its last holder, and needs no thread and no file."""

import gc
import subprocess
import sys
from pathlib import Path

from flowkit.clock import VirtualClock
from flowkit.source.brokers import open_broker
from flowkit.source.memory import MemoryBroker
from flowkit.source.memory_store import MemoryStore

ROOT = Path(__file__).parent.parent.parent


async def test_a_named_store_lives_as_long_as_any_broker_on_it() -> None:
    one = open_broker("memory://lives", VirtualClock())
    await one.create("t", 1)
    other = open_broker("memory://lives", VirtualClock())
    await one.close()
    del one
    gc.collect()
    assert await other.topics() == {"t": 1}
    del other
    gc.collect()
    assert await open_broker("memory://lives", VirtualClock()).topics() == {}


async def test_a_broker_without_a_store_has_its_own() -> None:
    one, other = MemoryBroker(VirtualClock()), MemoryBroker(VirtualClock())
    await one.create("t", 1)
    assert await other.topics() == {}


async def test_a_crash_is_a_broker_that_is_left_behind() -> None:
    store, clock = MemoryStore(), VirtualClock()
    await MemoryBroker(clock, store).claim("t", "/state/1")
    successor = await MemoryBroker(clock, store).claim("t", "/state/2")
    assert (successor.epoch, successor.state) == (2, "/state/1")


async def test_a_batch_stays_what_it_was_when_more_is_appended() -> None:
    broker = MemoryBroker(VirtualClock())
    await broker.create("t", 1)
    await broker.put("t", [(None, b"0", 0)])
    batch = await broker.read("t", 0, 0, 10)
    await broker.put("t", [(None, b"1", 0)])
    await broker.delete_before("t", 0, 2)
    assert batch.values == [b"0"]


def test_sqlite_is_not_loaded_before_an_embedded_broker_is_wanted() -> None:
    code = """if True:
        import sys
        from flowkit.clock import VirtualClock
        from flowkit.source.brokers import open_broker
        open_broker("memory://x", VirtualClock())
        assert "sqlite3" not in sys.modules
        open_broker("embedded://x", VirtualClock())
        assert "sqlite3" in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
