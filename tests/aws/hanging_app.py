"""An app that sends what it gets to its sink; records may be large."""

from collections.abc import AsyncIterator

from flowkit import App, Record, Stream

app = App("hanging")


class Reading(Record):
    id: str
    n: int
    at: int
    filler: str = ""


readings = app.topic("readings", Reading, key="id", time="at")
out = app.sink("out", Reading, key="id")


@app.agent(readings, sinks=[out])
async def copy(stream: Stream[Reading]) -> AsyncIterator[Reading]:
    async for reading in stream:
        yield reading
