"""Agents: what users write, how it is declared, checked and arranged into tasks. Nothing here runs anything."""

from flowkit.agent.operators import key_type, merge_rows, process_table, windows_of
from flowkit.agent.plan import Group, Plan, make_plan
from flowkit.agent.rekey import Hop, Internal
from flowkit.agent.spec import AgentSpec
from flowkit.agent.stream import END, EVENT, Need, Stream
from flowkit.agent.topic import Getter, Outlet, Sink, Topic, check_name, no_place
from flowkit.flow import Retry

__all__ = [
    "END",
    "EVENT",
    "AgentSpec",
    "Getter",
    "Group",
    "Hop",
    "Internal",
    "Need",
    "Outlet",
    "Plan",
    "Retry",
    "Sink",
    "Stream",
    "Topic",
    "check_name",
    "key_type",
    "make_plan",
    "merge_rows",
    "no_place",
    "process_table",
    "windows_of",
]
