"""Events anew from their bytes: one that failed may have been changed by its agent, one in a batch must be saved."""

from typing import Any

from flowkit.codec import Codec, encode_key
from flowkit.errors import ConfigError
from flowkit.flow import Chain
from flowkit.worker.inlet import Decoded
from flowkit.worker.origin import Made, Origin
from flowkit.worker.step import StepContext
from flowkit.worker.tap import Tap


class Recall:
    """Tells where an event came from, and makes it again from there."""

    def __init__(self, step: StepContext) -> None:
        self.step = step
        self._codecs: dict[str, Codec] = {}
        self._result_codecs: dict[Any, Codec | None] = {}
        self._chains: dict[tuple[str, str], Chain] = {}

    def of_record(self, topic: str, split: int, decoded: Decoded, index: int) -> Origin:
        """Where a record came from."""
        time = None if index in decoded.bad else decoded.times[index]
        return Origin(topic, split, decoded.batch, index, time)

    def of_table(self, name: str, t: int, event: Any) -> Origin:
        """Where an event of a table came from. Encoded now: its value may change before it is needed."""
        key = getattr(event, "key", None)
        where = f"{name} at {t}" if key is None else f"{name} key {key!r} at {t}"
        key_bytes = None if key is None else encode_key(key)
        return Origin(name, 0, None, 0, t, [name, -1, 0, where, key_bytes, self.codec(name).encode(event), t])

    def of_kept(self, name: str, t: int, event: Any) -> Origin:
        """Of an event that the operator `name` has kept, which is all that is left of where it came from."""
        where = f"kept by {name} since it came, of time {t}"
        return Origin(name, 0, None, 0, t, [name, -1, 0, where, None, Codec("json", Any).encode(event), t])

    def event(self, origin: Origin) -> Any:
        """The event anew."""
        if origin.made is not None:
            return self._of_result(origin, origin.made)
        topic, split, _, _, _, value, *_ = origin.save()
        inlet = self.step.inlets.get((topic, split))
        codec = self.codec(topic) if inlet is None else inlet.codec
        event = codec.decode(value)
        if origin.via is None:
            return event
        stream, number = origin.via
        return self._chain(topic, stream).many(event)[number]

    def _of_result(self, origin: Origin, made: Made) -> Any:
        """The result of a call anew, or what was made of it."""
        called, data, result = made
        if data is not None:
            codec = self.result_codec(self._type(called), result)
            assert codec is not None
            result = codec.decode(data)
        if origin.via is None:
            return result
        stream, number = origin.via
        return self._chain(called, stream).many(result)[number]

    def result_codec(self, type_: Any, kind: Any) -> Codec | None:
        """How the results of a call are kept whose declared type is `type_`; of unknown type, as their class says."""
        wanted = kind if type_ is Any and kind is not None else type_
        if wanted not in self._result_codecs:
            try:
                self._result_codecs[wanted] = Codec("msgpack", wanted)
            except (ConfigError, TypeError):
                self._result_codecs[wanted] = None
        return self._result_codecs[wanted]

    def _type(self, name: str) -> Any:
        return next(root.type for root in self.step.group.roots() if root.name == name)

    def _chain(self, root: str, stream: str) -> Chain:
        """What leads from one stream to another that was made of it."""
        known = self._chains.get((root, stream))
        if known is None:
            taps = (driver for driver in self.step.routes[root] if isinstance(driver, Tap))
            known = self._chains[root, stream] = next(tap.chain for tap in taps if tap.stream == stream)
        return known

    def codec(self, name: str) -> Codec:
        """How what a table sends under `name` is saved."""
        if name not in self._codecs:
            self._codecs[name] = Codec("msgpack", self._type(name))
        return self._codecs[name]
