"""Where an event came from: enough to find it again, to save it with a commit, and to write its dead letter."""

import os
import traceback
from pathlib import Path
from typing import Any

from flowkit.record import DeadLetter
from flowkit.source import Batch

GENERATED = "<flowkit "
"""What the names of generated code begin with, where others have a file."""
OURS = str(Path(__file__).parent.parent) + os.sep


Made = tuple[str, bytes | None, Any]
"""The result of a call: its stream, the result encoded, and its class (or, if it cannot be encoded, itself)."""


class Origin:
    """One record of a batch, or (with `data`) an event that a table sent.

    `made` is the result of a call that was made for it, if it is that. `via` says what was made of it (or of that
    result), if anything: the derived stream, and which of the events that came of it.
    """

    __slots__ = ("batch", "data", "index", "made", "split", "time", "topic", "via")

    def __init__(
        self,
        topic: str,
        split: int,
        batch: Batch | None,
        index: int,
        time: int | None,
        data: Any = None,
        via: tuple[str, int] | None = None,
        made: Made | None = None,
    ) -> None:
        self.topic, self.split, self.batch, self.index, self.time, self.data = topic, split, batch, index, time, data
        self.via, self.made = via, made

    def derived(self, stream: str, number: int) -> "Origin":
        """Of one of the events that the stream `stream` makes of this one."""
        return Origin(self.topic, self.split, self.batch, self.index, self.time, self.data, (stream, number), self.made)

    def made_of(self, made: Made) -> "Origin":
        """Of the result of a call for this one."""
        return Origin(self.topic, self.split, self.batch, self.index, self.time, self.data, None, made)

    def save(self) -> list[Any]:
        """As builtins: topic, split, offset, where, key, value, time; for a derived event also stream and number.

        For the result of a call the call's stream and the result follow. Raises TypeError for one that is not to be
        encoded.
        """
        if self.made is None:
            return [*self._saved(), *(self.via or ())]
        stream, data, kind = self.made
        if data is None:
            raise TypeError(
                f"{stream!r} gave a {type(kind).__name__}, which cannot be kept: give a type that "
                "can be encoded, or take what is needed of it by map"
            )
        return [*self._saved(), *(self.via or (None, None)), stream, data]

    @classmethod
    def load(cls, saved: list[Any]) -> "Origin":
        """What `save` gave."""
        row, via, made = saved[:7], saved[7:9], saved[9:]
        return cls(
            row[0],
            row[1],
            None,
            0,
            row[6],
            row,
            (via[0], via[1]) if via and via[0] is not None else None,
            (made[0], made[1], None) if made else None,
        )

    def _saved(self) -> list[Any]:
        if isinstance(self.data, list):
            return self.data
        batch = self.batch
        assert batch is not None
        key = batch.keys[self.index] if batch.keys is not None else None
        return [
            self.topic,
            self.split,
            batch.offset(self.index),
            batch.where(self.index),
            key,
            _bytes(batch.values[self.index]),
            self.time,
        ]

    def letter(self, error: BaseException, agent: str, attempts: int) -> DeadLetter:
        """The dead letter of this event."""
        topic, split, offset, where, key, value, time = self._saved()
        if where.endswith(lies := f"[{split}] offset {offset}"):
            topic = where.removesuffix(lies)  # of a pattern, the topic that it was
        reason = str(error) or type(error).__name__
        _forget_the_callers_errors(error)
        shown = "".join(traceback.format_exception(type(error), error, _users_part(error))) if attempts else ""
        return DeadLetter(
            topic, split, offset, where, key, value, time, type(error).__name__, reason, shown, agent, attempts
        )


def _users_part(error: BaseException) -> Any:
    """The traceback from where it leaves flowkit, generated code included; None if it never does.

    How an agent is called tells its author nothing, and differs: by the quick way or carefully, in a loop or alone.
    """
    part = error.__traceback__
    while part is not None and part.tb_frame.f_code.co_filename.startswith((OURS, GENERATED)):
        part = part.tb_next
    return part


def _forget_the_callers_errors(error: BaseException) -> None:
    """Cut what Python notes as "during handling of" but was being handled around the agent, not in it.

    What that is depends on the way that the engine took: the same letter must not tell of it once and once not.
    """
    known = set()
    while True:
        part = _users_part(error)
        while part is not None:
            known.add(part.tb_frame)
            part = part.tb_next
        context = error.__context__
        if context is not None and (context.__traceback__ is None or context.__traceback__.tb_frame not in known):
            context = error.__context__ = None
        earlier = error.__cause__ or context
        if earlier is None or earlier.__traceback__ is None:
            return
        error = earlier


def _bytes(value: bytes | None) -> bytes | None:
    return None if value is None else bytes(value)
