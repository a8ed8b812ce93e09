"""Flows as they are declared: streams, what operators make of them, and the ways that events take."""

from flowkit.flow.calls import CallSpec
from flowkit.flow.events import By, Called, Derived, Events, Keyed, Owner, Step, check_by
from flowkit.flow.paths import DROPPED, Chain, Path, chain_of, nested, paths_of, roots_of
from flowkit.flow.retry import Retry

__all__ = [
    "DROPPED",
    "By",
    "CallSpec",
    "Called",
    "Chain",
    "Derived",
    "Events",
    "Keyed",
    "Owner",
    "Path",
    "Retry",
    "Step",
    "chain_of",
    "check_by",
    "nested",
    "paths_of",
    "roots_of",
]
