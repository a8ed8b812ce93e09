"""Times, durations, bytes and tables of text as people read them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import msgspec

from flowkit.codec import decode_mark, enveloped
from flowkit.record import EARLIEST, END_OF_TIME, LATEST, MIN_TIME, duration
from flowkit.window import IDLE, QUIET, Count, Cumulative, Global, Session, Sliding, Tumbling

STANDINGS = {IDLE: ", idle", QUIET: ", silent: by the clock"}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def iso(ms: int) -> str:
    """A time in ISO 8601, to the ms where it has any.

    >>> iso(1_700_000_000_000), iso(-1), iso(2**63 - 1)
    ('2023-11-14T22:13:20Z', '1969-12-31T23:59:59.999Z', 'the end of time')
    """
    if ms <= MIN_TIME:
        return "the beginning of time"
    if ms >= END_OF_TIME:
        return "the end of time"
    if not EARLIEST <= ms <= LATEST:
        return f"{ms} ms"
    at = EPOCH + timedelta(milliseconds=ms)
    return at.replace(tzinfo=None).isoformat(timespec="milliseconds" if ms % 1000 else "seconds") + "Z"


def size(of: int) -> str:
    """Bytes in the largest unit that leaves a digit before the point.

    >>> size(0), size(1023), size(2**20), size(5 * 10**9)
    ('0 B', '1023 B', '1.0 MiB', '4.7 GiB')
    """
    if of < 1024:
        return f"{of} B"
    shown, units = float(of), iter(("KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = ""
    while shown >= 1024:
        shown, unit = shown / 1024, next(units)
    return f"{shown:.1f} {unit}"


def text(data: bytes | None, limit: int | None = None) -> str:
    """Bytes as text on one line, what is no text escaped; `-` if there are none."""
    if data is None:
        return "-"
    shown = data.decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def record_value(data: bytes | None) -> str:
    """A record's value as text; of an internal topic the event in it as JSON, or what a sender says of itself."""
    mark = decode_mark(data)
    if mark is not None:
        sender, watermark, standing = mark
        return f"(mark: {sender} has come to {iso(watermark)}{STANDINGS.get(standing, '')})"
    event = enveloped(data)
    return text(data if event is None else msgspec.json.encode(event, enc_hook=repr))


def type_name(type_: Any) -> str:
    """A type as it was written.

    >>> type_name(int), type_name(tuple[str, int])
    ('int', 'tuple[str, int]')
    """
    return type_.__name__ if isinstance(type_, type) and not get_args(type_) else str(type_)


def window_words(window: Any) -> str:
    """A kind of windows in words; `-` for None.

    >>> window_words(Sliding(60_000, every=10_000)), window_words(Count(3))
    ('sliding 1 min every 10 s', 'count 3')
    """
    match window:
        case Tumbling():
            words = f"tumbling {duration(window.size)}"
        case Sliding():
            words = f"sliding {duration(window.size)} every {duration(window.every)}"
        case Cumulative():
            words = f"cumulative {duration(window.size)} by {duration(window.step)}"
        case Session():
            words = f"session, gap {duration(window.gap)}"
        case Count():
            words = f"count {window.n}" + (f" every {window.every}" if window.every else "")
        case Global():
            words = "global"
        case _:
            words = "-"
    return words + (f", offset {duration(window.offset)}" if getattr(window, "offset", 0) else "")


def count(number: int, thing: str) -> str:
    """A number of things.

    >>> count(1, "record"), count(12_000, "record")
    ('1 record', '12,000 records')
    """
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def columns(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under a header, columns aligned; the last one as wide as it is."""
    table = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in table) for at in range(len(header) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in table
    ]
    return "\n".join(lines)
