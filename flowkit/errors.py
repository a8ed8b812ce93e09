"""Every error that flowkit raises on purpose.

FlowkitError
├── ConfigError            the app or the command line is wrong; told before anything starts
│   └── SchemaChanged      stored state does not fit the types that the app declares now
├── InputError             an input cannot be read at all (no such file, a directory, no header)
│   └── TopicGone          a topic was deleted while it was read
├── RecordError            one record cannot be used; it becomes a dead letter
│   ├── DecodeError        its bytes are not what the topic's type says
│   └── TimeError          it has no usable event time
├── StateError             an agent used a table in a way that cannot be right
│   ├── NoEvent            table[key] outside an event
│   ├── WindowClosed       the event's window is closed; uncaught, the event becomes a late record
│   ├── WrongPartition     the key belongs to another partition's task
│   ├── ReadOnly           a table that the agent only reads was written
│   ├── UndeclaredTable    a table that the agent does not declare
│   └── UnsavedChange      (harness) an object was changed that no commit saves
├── UndeclaredSink         emit to a sink that the agent does not declare
├── StoreError             the store cannot go on
│   ├── StoreLocked        another process owns it
│   ├── StoreCorrupt       bytes on disk are not what was written
│   ├── StoreKeyError      encrypted, and the key for it is missing or wrong
│   └── StorePoisoned      an earlier write or sync failed: nothing after it is promised
├── CommitError            a commit failed
│   ├── Fenced             another owner has taken the task over
│   └── OutcomeUnknown     the broker did not say whether the commit counts: open the task again
├── BrokerError            the broker cannot be reached, refuses us, or cannot do what was asked
│   └── BrokerRefused      it knows us, or not, and does not let us: trying again would not help
├── SinkError              a destination refuses us, or is not there; what it was to get is not lost
├── LookupFailed           a lookup got no answer that counts
└── Stalled                the watchdog saw no progress
"""


class FlowkitError(Exception):
    """The root: catch this to catch everything that flowkit raises on purpose."""


class ConfigError(FlowkitError):
    """The app, its bindings or the command line are wrong. All problems found are told at once."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class SchemaChanged(ConfigError):
    """Stored state has another shape than the app declares now, and no migration says how to read it."""


class InputError(FlowkitError):
    """An input cannot be read at all: it is missing, a directory, truncated, or has no usable header."""


class TopicGone(InputError):
    """A topic was deleted while it was read."""


class RecordError(FlowkitError):
    """One record cannot be used. The worker sends it to the dead letters and goes on."""


class DecodeError(RecordError):
    """The bytes of a record are not what its topic's type and codec say."""


class TimeError(RecordError):
    """A record has no usable event time: missing, not a time, or outside the years 1 to 9999."""


class StateError(FlowkitError):
    """An agent used a table in a way that cannot be right."""


class NoEvent(StateError):
    """`table[key]` means "at this event's time", and there is no event here."""


class WindowClosed(StateError):
    """The window at this event's time is closed. Uncaught, the event is undone and becomes a late record."""

    def __init__(self, message: str, table: str = "") -> None:
        super().__init__(message)
        self.table = table


class WrongPartition(StateError):
    """The key belongs to another partition: counting it here would count only a part of it."""


class ReadOnly(StateError):
    """A table declared in `reads=` was written."""


class UndeclaredTable(StateError):
    """An agent used a table that it names neither in `tables=` nor in `reads=`."""


class UnsavedChange(StateError):
    """An object was changed after its event was over, or a copy was changed: no commit will save it."""


class UndeclaredSink(FlowkitError):
    """An agent emitted to a sink that it does not name in `sinks=`."""


class StoreError(FlowkitError):
    """The store cannot go on; the message names the file and, where it is known, the offset."""


class StoreLocked(StoreError):
    """Another living process owns the store."""


class StoreCorrupt(StoreError):
    """Bytes on disk are not what was written."""


class StoreKeyError(StoreError):
    """The store is encrypted, and the key given is missing or not the right one."""


class StorePoisoned(StoreError):
    """An earlier write or sync failed, so nothing after it can be promised. Open the store again."""


class CommitError(FlowkitError):
    """A commit failed."""


class Fenced(CommitError):
    """Another owner has taken the task over; nothing that this one does counts any more."""


class OutcomeUnknown(CommitError):
    """Nobody knows whether the commit counts. Open the task again: the log will tell."""


class BrokerError(FlowkitError):
    """A broker cannot be reached, refuses us, or cannot do what was asked; the message names its address."""


class BrokerRefused(BrokerError):
    """A broker is there, and does not let us: to try again would not help, so nobody waits for it."""


class SinkError(FlowkitError):
    """A destination refuses us, is not there, or is not as it has to be; the message names it.

    What it was to get is part of a commit, and is delivered once that is mended.
    """


class LookupFailed(FlowkitError):
    """A lookup got no answer that counts: a status that is an error, a file that cannot be read."""


class Stalled(FlowkitError):
    """The watchdog saw no progress for too long."""
