"""The job for faust-streaming: `faust -A faust_app worker`. RIVAL_FORM is how windows are kept.

`event time` keeps them in a plain table and closes them when the time of events has passed their end, written by hand:
faust's own windows are closed by the wall clock. `windowed` is its own windowed table: what of it goes out, and when,
is `expires` seconds after the window's end by the clock, so in a run over older events nothing does.
"""

import os

import faust  # type: ignore[import-not-found,unused-ignore]

NAME, FORM, MINUTE = os.environ["BENCH_NAME"], os.environ["RIVAL_FORM"], 60_000

app = faust.App(
    NAME,
    broker=f"kafka://{os.environ['BENCH_KAFKA']}",
    store=os.environ["RIVAL_STORE"],
    datadir=os.environ["RIVAL_STATE"],
    consumer_auto_offset_reset="earliest",
    table_standby_replicas=0,
    topic_partitions=1,
    topic_replication_factor=1,
    topic_disable_leader=True,
    stream_buffer_maxsize=int(os.environ["RIVAL_BUFFER"]),
    web_enabled=False,
)
events = app.topic(os.environ["BENCH_TOPIC"], key_type=str, value_serializer="json")
out = app.topic(f"{NAME}-out", key_type=str, value_serializer="json")

if FORM == "event time":
    sums = app.Table("sums", key_type=str, partitions=1)

    @app.agent(events)
    async def add(stream):  # type: ignore[no-untyped-def]
        now = 0
        async for event in stream:
            end = event["at"] // MINUTE * MINUTE + MINUTE
            if end < now:
                continue  # too late
            if end > now:
                await close(end - MINUTE)
                now = end
            name = f"{end}/{event['key']}"
            found = sums.get(name)
            if found is None:
                sums[name] = [1, event["amount"]]
            else:
                sums[name] = [found[0] + 1, found[1] + event["amount"]]

    async def close(upto: int) -> None:
        """Send and forget what ended by then."""
        for name in list(sums):
            text, key = name.split("/", 1)
            if int(text) <= upto:
                n, total = sums[name]
                await out.send(key=key, value={"key": key, "end": int(text), "n": n, "total": total})
                del sums[name]

else:

    async def tell(window, value):  # type: ignore[no-untyped-def]
        """A window that the clock has closed."""
        key, (start, _) = window
        await out.send(key=key, value={"key": key, "end": int(start) * 1000 + MINUTE, "n": value[0], "total": value[1]})

    sums = app.Table("sums", default=lambda: [0, 0], partitions=1, on_window_close=tell).tumbling(
        60.0, expires=86_400.0
    )

    @app.agent(events)
    async def add(stream):  # type: ignore[no-untyped-def]
        async for event in stream:
            found = sums[event["key"]].value()
            sums[event["key"]] = [found[0] + 1, found[1] + event["amount"]]
