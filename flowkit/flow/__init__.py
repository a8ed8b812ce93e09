"""Flows as they are declared: streams, what operators make of them, and the ways that events take."""

from flowkit.flow.events import Derived, Events, Kept, Keyed, Matches, Owner, Step, Windowing, Windows, check_by, key_of
from flowkit.flow.keeping import By, Feed, Keeping
from flowkit.flow.paths import DROPPED, Chain, Path, chain_of, nested, paths_of, roots_of

__all__ = [
    "DROPPED",
    "By",
    "Chain",
    "Derived",
    "Events",
    "Feed",
    "Keeping",
    "Kept",
    "Keyed",
    "Matches",
    "Owner",
    "Path",
    "Step",
    "Windowing",
    "Windows",
    "chain_of",
    "check_by",
    "key_of",
    "nested",
    "paths_of",
    "roots_of",
]
