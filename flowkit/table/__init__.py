"""Tables: keyed state that agents change as plain objects, by window or not, saved whole at each commit."""

from flowkit.table.aggregates import (
    Aggregate,
    CountDistinct,
    Custom,
    First,
    Last,
    Max,
    Mean,
    Min,
    Quantile,
    Sum,
    TopK,
    Variance,
)
from flowkit.table.aligned import AlignedState
from flowkit.table.build import check_schema, compiled_of, default_factory, make_state, migrate_cell, schema_of
from flowkit.table.cursor import Cursor, Mode, current
from flowkit.table.definition import (
    AnyTable,
    OverlappingTable,
    Table,
    TableEvents,
    WindowedTable,
    overlaps,
)
from flowkit.table.fused import BatchLoop, Compiled, batch_loop
from flowkit.table.keyed_timers import Timers, TimerState
from flowkit.table.look import Held, look, look_up
from flowkit.table.process import Process, ProcessState, ProcessTable, Sent, key_type_of
from flowkit.table.state import NEVER, Open, Result, State
from flowkit.table.ticks import Ticks, TickState

__all__ = [
    "NEVER",
    "Aggregate",
    "AlignedState",
    "AnyTable",
    "BatchLoop",
    "Compiled",
    "CountDistinct",
    "Cursor",
    "Custom",
    "First",
    "Held",
    "Last",
    "Max",
    "Mean",
    "Min",
    "Mode",
    "Open",
    "OverlappingTable",
    "Process",
    "ProcessState",
    "ProcessTable",
    "Quantile",
    "Result",
    "Sent",
    "State",
    "Sum",
    "Table",
    "TableEvents",
    "TickState",
    "Ticks",
    "TimerState",
    "Timers",
    "TopK",
    "Variance",
    "WindowedTable",
    "batch_loop",
    "check_schema",
    "compiled_of",
    "current",
    "default_factory",
    "key_type_of",
    "look",
    "look_up",
    "make_state",
    "migrate_cell",
    "overlaps",
    "schema_of",
]
