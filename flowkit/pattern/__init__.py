"""Patterns: sequences of events of a key, found in event-time order. Names and meaning are those of Flink CEP.

builder.py (what users write) -> element.py (a row pattern) -> program.py (compiled) -> engine.py (runs on a key's cell)
process.py makes a keyed process of it. Pure: no I/O, no clock.
"""

from flowkit.pattern.builder import Matched, Pattern
from flowkit.pattern.cell import Cell, Run
from flowkit.pattern.checks import check_pattern, pattern_shape, unbounded_because
from flowkit.pattern.element import Condition, Contiguity, Element, RowPattern
from flowkit.pattern.engine import Engine, Found
from flowkit.pattern.process import TIMED_OUT, Match, PatternProcess, TimedOut
from flowkit.pattern.program import Program, compile_pattern
from flowkit.pattern.skip import AfterMatch, NoSkip, SkipPastLast, SkipToFirst, SkipToLast, SkipToNext

__all__ = [
    "TIMED_OUT",
    "AfterMatch",
    "Cell",
    "Condition",
    "Contiguity",
    "Element",
    "Engine",
    "Found",
    "Match",
    "Matched",
    "NoSkip",
    "Pattern",
    "PatternProcess",
    "Program",
    "RowPattern",
    "Run",
    "SkipPastLast",
    "SkipToFirst",
    "SkipToLast",
    "SkipToNext",
    "TimedOut",
    "check_pattern",
    "compile_pattern",
    "pattern_shape",
    "unbounded_because",
]
