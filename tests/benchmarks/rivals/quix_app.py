"""The job for quixstreams: a tumbling window with two aggregations, final results only, on RocksDB with a changelog."""

import os

from quixstreams import Application  # type: ignore[import-not-found,unused-ignore]
from quixstreams.dataframe.windows import Count, Sum  # type: ignore[import-not-found,unused-ignore]

NAME = os.environ["BENCH_NAME"]

app = Application(
    broker_address=os.environ["BENCH_KAFKA"],
    consumer_group=NAME,
    auto_offset_reset="earliest",
    state_dir=os.environ["RIVAL_STATE"],
    commit_interval=float(os.environ["RIVAL_COMMIT_INTERVAL"]),
)
events = app.topic(
    os.environ["BENCH_TOPIC"],
    key_deserializer="str",
    value_deserializer="json",
    timestamp_extractor=lambda value, headers, at, kind: value["at"],
)
out = app.topic(f"{NAME}-out", key_serializer="str", value_serializer="json")
stream = app.dataframe(events)
windows = stream.tumbling_window(60_000, grace_ms=0).agg(n=Count(), total=Sum("amount"))
windows.final(closing_strategy=os.environ["RIVAL_FORM"]).to_topic(out)

if __name__ == "__main__":
    app.run()
