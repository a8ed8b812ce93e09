"""An app that sends what it gets to its sink; records may be large."""

import os
from collections.abc import AsyncIterator

from flowkit import App, Record, Stream

NAME = os.environ.get("HANGING_APP", "hanging")
app = App(NAME)


class Reading(Record):
    id: str
    n: int
    at: int
    filler: str = ""


readings = app.topic(f"{NAME}-readings", Reading, key="id", time="at")
out = app.sink("out", Reading, key="id")


@app.agent(readings, sinks=[out])
async def copy(stream: Stream[Reading]) -> AsyncIterator[Reading]:
    async for reading in stream:
        yield reading
