"""`flowkit new NAME`: a service to begin with, whose test passes."""

import keyword
import re
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from flowkit.cli.outcome import EXIT_CODES, OK, out
from flowkit.errors import ConfigError

APP = '''"""$title: counts clicks a user, minute by minute, and tells who is too quick."""

from collections.abc import AsyncIterator

import flowkit
from flowkit import Closed, Stream, Tumbling, minutes, seconds

app = flowkit.App("$name")


class Click(flowkit.Record):
    user: str
    page: str
    at: int  # ms since the epoch; ISO 8601 text and datetimes do as well


class Count(flowkit.Record):
    clicks: int = 0


class Alert(flowkit.Record):
    user: str
    clicks: int


class Minute(flowkit.Record):
    user: str
    until: int
    clicks: int


clicks = app.topic("clicks", Click, key="user", time="at", out_of_order=seconds(5))
alerts = app.topic("alerts", Alert, key="user")
by_minute = app.sink("by_minute", Minute)
counts = app.table("counts", str, Count, window=Tumbling(minutes(1)))


@app.agent(clicks, tables=[counts], sinks=[alerts])
async def count(stream: Stream[Click]) -> AsyncIterator[Alert]:
    async for click in stream:
        this_minute = counts[click.user]  # this user's minute at the time of this click
        this_minute.clicks += 1
        if this_minute.clicks == 3:
            yield Alert(click.user, this_minute.clicks)


@app.each(counts.closed, sinks=[by_minute])
def report(window: Closed[str, Count]) -> Minute:
    return Minute(window.key, window.end, window.value.clicks)
'''

TEST = '''"""The app, tested without a server: real engine, virtual clock."""

import asyncio

from app import Alert, Click, Minute, alerts, app, by_minute, clicks
from flowkit import minutes, seconds
from flowkit.testing import harness


def test_three_clicks_within_a_minute_are_too_quick() -> None:
    async def story() -> None:
        async with harness(app, seed=7) as h:
            for n in range(3):
                await h.send(clicks, Click("ann", "/", at=seconds(n)))
            await h.send(clicks, Click("bob", "/", at=seconds(3)))
            assert h.sent(alerts) == [Alert("ann", 3)]

    asyncio.run(story())


def test_a_minute_is_reported_when_it_is_over() -> None:
    async def story() -> None:
        async with harness(app, seed=7) as h:
            await h.send(clicks, Click("ann", "/", at=seconds(1)))
            assert h.sent(by_minute) == []
            await h.send(clicks, Click("bob", "/", at=minutes(2)))
            assert h.sent(by_minute) == [Minute("ann", minutes(1), 1)]

    asyncio.run(story())
'''

SAMPLE = """\
{"user":"ann","page":"/","at":1700000000000}
{"user":"ann","page":"/cart","at":1700000001000}
{"user":"bob","page":"/","at":1700000002000}
{"user":"ann","page":"/pay","at":1700000003000}
{"user":"bob","page":"/help","at":1700000065000}
"""

README = """# $title

Counts clicks a user, minute by minute, and tells who is too quick.

    pytest                                                                       # its test
    flowkit run app.py --input clicks=sample.jsonl --output alerts=-             # over a file
    flowkit explain app.py                                                       # what it does
    flowkit check app.py                                                         # what may go wrong

Live, with topics in a directory:

    flowkit topics create clicks alerts --broker embedded://data/topics
    flowkit worker app.py --broker embedded://data/topics --bind by_minute=data/by_minute.jsonl --state data/state
    flowkit topics put clicks sample.jsonl --key user --time at --broker embedded://data/topics

In a container:

    docker build -t $name .
    docker run -v $name-data:/var/lib/flowkit $name
"""

DOCKERFILE = """\
FROM python:3.11-slim-bookworm
RUN pip install --no-cache-dir flowkit \\
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin flowkit \\
    && install -d -o flowkit -m 0750 /var/lib/flowkit
WORKDIR /app
COPY app.py .
ENV FLOWKIT_APP=app \\
    FLOWKIT_STATE=/var/lib/flowkit/state \\
    FLOWKIT_BROKER=embedded:///var/lib/flowkit/topics \\
    PYTHONUNBUFFERED=1
USER 10001
VOLUME /var/lib/flowkit
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["flowkit", "health"]
ENTRYPOINT ["flowkit"]
CMD ["worker", "--bind", "by_minute=/var/lib/flowkit/by_minute.jsonl"]
"""

FILES = {"app.py": APP, "test_app.py": TEST, "sample.jsonl": SAMPLE, "README.md": README, "Dockerfile": DOCKERFILE}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("new", epilog=EXIT_CODES)(new)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The directory that is made.")],
) -> int:
    """Make a service to begin with: an app, a test that passes, a README and a Dockerfile."""
    path = Path(name)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", path.name) or keyword.iskeyword(path.name):
        raise ConfigError(f"{path.name!r} is no name for a service: letters, digits, - and _, a letter first")
    try:
        path.mkdir(parents=True)
        words = {"name": path.name.lower().replace("_", "-"), "title": path.name.replace("_", " ").replace("-", " ")}
        for file, content in FILES.items():
            (path / file).write_text(Template(content).substitute(words), encoding="utf-8")
    except FileExistsError:
        raise ConfigError(f"{path}: exists already; choose another name") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}") from error
    out(f"""made {path}/ with {", ".join(FILES)}. Next:
  cd {path}
  pytest
  flowkit run app.py --input clicks=sample.jsonl --output alerts=- --output by_minute=-""")
    return OK
