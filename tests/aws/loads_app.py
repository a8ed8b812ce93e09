"""An app that writes down what its worker has loaded by the time that event `LOADED_AT` comes."""

import gc
import json
import os
import sys
from pathlib import Path

import flowkit

NAME = os.environ.get("KINESIS_APP", "app")

app = flowkit.App(NAME)


class Event(flowkit.Record):
    key: str
    number: int


class Total(flowkit.Record):
    key: str
    number: int
    total: int


events = app.topic(f"{NAME}-in", Event, key="key")
out = app.topic(f"{NAME}-out", Total, key="key")
totals = app.table("totals", str, int)


def is_client(found: object) -> bool:
    """True for one of aiobotocore's, which this file does not load itself."""
    return any(base.__name__ == "AioBaseClient" for base in type(found).__mro__)


@app.each(events, tables=[totals], sinks=[out])
def count(event: Event) -> Total:
    totals[event.key] += 1
    if event.number == int(os.environ["LOADED_AT"]):
        services = sorted({each.meta.service_model.service_name for each in gc.get_objects() if is_client(each)})
        Path(os.environ["LOADED"]).write_text(json.dumps({"modules": list(sys.modules), "clients": services}))
    return Total(event.key, event.number, totals[event.key])
