"""Flows as they are declared: streams, what operators make of them, and the ways that events take."""

from flowkit.flow.calls import CallSpec
from flowkit.flow.events import (
    Called,
    Derived,
    Events,
    Kept,
    Keyed,
    Matches,
    Owner,
    Step,
    Windowing,
    Windows,
    check_by,
    key_of,
)
from flowkit.flow.keeping import By, Feed, Keeping
from flowkit.flow.paths import DROPPED, Chain, Cuts, Path, chain_of, keyed_in, nested, paths_into, paths_of, roots_of
from flowkit.flow.retry import Retry

__all__ = [
    "DROPPED",
    "By",
    "CallSpec",
    "Called",
    "Chain",
    "Cuts",
    "Derived",
    "Events",
    "Feed",
    "Keeping",
    "Kept",
    "Keyed",
    "Matches",
    "Owner",
    "Path",
    "Retry",
    "Step",
    "Windowing",
    "Windows",
    "chain_of",
    "check_by",
    "key_of",
    "keyed_in",
    "nested",
    "paths_into",
    "paths_of",
    "roots_of",
]
