"""From an operator as it is declared to the table that keeps what it needs."""

from typing import Any

from flowkit.codec import type_name
from flowkit.errors import ConfigError
from flowkit.flow import Events, Keeping, check_by
from flowkit.table import ProcessTable, key_type_of


def key_type(keeping: Keeping) -> Any:
    """The type of an operator's key. Raises ConfigError if its inputs do not agree on it."""
    types: list[Any] = []
    for feed in keeping.feeds:
        check_by(f"{keeping.name}: {feed.stream.name}", feed.by, feed.stream.type)
        types.append(key_type_of(feed.stream.type, feed.by))
    known = [type_ for type_ in types if type_ is not Any]
    if any(type_ != known[0] for type_ in known):
        told = " and ".join(
            f"{feed.by!r} of {feed.stream.name} is {type_name(type_)}"
            for feed, type_ in zip(keeping.feeds, types, strict=True)
        )
        raise ConfigError(f"{keeping.name}: keys of different types never meet: {told}")
    return known[0] if known else Any


def process_table(keeping: Keeping) -> ProcessTable:
    """The table of an operator that is a process."""
    key = key_type(keeping)
    return ProcessTable(
        keeping.name,
        key,
        keeping.process,
        keeping.feeds,
        keeping.sends(key),
        words=keeping.words,
        signature=keeping.signature,
        grows=keeping.grows,
    )


def merge_rows(a: Any, b: Any) -> Any:
    """The rows of two sessions that have become one."""
    return type(a)(a.left + b.left, a.right + b.right)


def windows_of(keeping: Keeping, table: Any) -> Events[Any]:
    """Make `table`, of the windows of an operator, take the operator's inputs; what comes of its closed windows."""
    pairs = keeping.pairs
    assert pairs is not None
    table.feeds, table.add, table.words = keeping.feeds, pairs.add, keeping.words
    main: Events[Any] = table.closed.flat_map(pairs.product, type=pairs.type, name=keeping.name)
    main.late = table.late  # type: ignore[attr-defined]  # which makes it `Kept`, for its user
    return main
