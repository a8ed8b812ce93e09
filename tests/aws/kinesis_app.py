"""An app whose every output shows whether its state is what it should be: the running count of each key.

By the time that event `LOADED_AT` comes, it writes down what its worker has loaded.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

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


def moved(event: Event) -> Event:
    """Nobody can know that its key is the same."""
    return event


source: Any = events.map(moved).group_by("key", name="moved") if "KINESIS_APP_HOP" in os.environ else events
more = [app.topic(f"{NAME}-more", Event, key="key")] if "KINESIS_APP_MORE" in os.environ else []


def tell_loaded(to: Path) -> None:
    """The modules, and the services of aiobotocore's clients, which this file does not load itself."""

    def is_client(found: object) -> bool:
        return any(base.__name__ == "AioBaseClient" for base in type(found).__mro__)

    services = sorted({each.meta.service_model.service_name for each in gc.get_objects() if is_client(each)})
    to.write_text(json.dumps({"modules": list(sys.modules), "clients": services}))


LOADED_AT = int(os.environ.get("LOADED_AT", "-1"))


@app.each(source, *more, tables=[totals], sinks=[out])
def count(event: Event) -> Total:
    totals[event.key] += 1
    if event.number == LOADED_AT:
        tell_loaded(Path(os.environ["LOADED"]))
    return Total(event.key, event.number, totals[event.key])
