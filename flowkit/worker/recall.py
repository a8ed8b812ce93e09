"""Events anew from their bytes: one that failed may have been changed by its agent, one in a batch must be saved."""

from typing import Any

from flowkit.codec import Codec, encode_key
from flowkit.worker.inlet import Decoded
from flowkit.worker.origin import Origin
from flowkit.worker.step import StepContext


class Recall:
    """Tells where an event came from, and makes it again from there."""

    def __init__(self, step: StepContext) -> None:
        self.step = step
        self._codecs: dict[str, Codec] = {}

    def of_record(self, topic: str, split: int, decoded: Decoded, index: int) -> Origin:
        """Where a record came from."""
        time = None if index in decoded.bad else decoded.times[index]
        return Origin(topic, split, decoded.batch, index, time)

    def of_table(self, name: str, t: int, event: Any) -> Origin:
        """Where an event of a table came from. Encoded now: its value may change before it is needed."""
        key = getattr(event, "key", None)
        where = f"{name} key {key!r} at {t}"
        key_bytes = None if key is None else encode_key(key)
        return Origin(name, 0, None, 0, t, [name, -1, 0, where, key_bytes, self.codec(name).encode(event), t])

    def event(self, origin: Origin) -> Any:
        """The event anew."""
        saved = origin.save()
        inlet = self.step.inlets.get((saved[0], saved[1]))
        codec = self.codec(saved[0]) if inlet is None else inlet.codec
        return codec.decode(saved[5])

    def codec(self, name: str) -> Codec:
        """How what a table sends under `name` is saved."""
        if name not in self._codecs:
            group = self.step.group
            sources = [source for agent in group.agents for source in agent.sources]
            sources += [table.source for table in group.tables if table.source is not None]
            self._codecs[name] = Codec("msgpack", next(source.type for source in sources if source.name == name))
        return self._codecs[name]
