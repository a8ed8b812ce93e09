"""What the facts about a window mean, in words: what it waits for, on whom, since when, and the cure."""

from collections.abc import Iterator
from typing import Any

from flowkit.cli.show import columns, count, iso, window_words
from flowkit.record import END_OF_TIME, duration
from flowkit.window import Count, Cumulative, Global, Session, Sliding, Tumbling
from flowkit.worker import Facts, SplitFacts, TaskFacts, WindowFacts

SILENT = 5_000
"""A split that has sent nothing for so long (ms) is called silent."""

SPLITS = 3
"""So many splits are named."""

TASKS = 20
"""So many tasks are shown, those with a window to close first."""


def say_why(facts: Facts) -> str:
    """All of it."""
    of = f" for key {facts.key}" if facts.key is not None else ""
    who = "its worker is running" if facts.running else "no worker is running with it"
    lines = [f"table {facts.table}{of}: {_kind(facts.kind)}, app {facts.app}, {who}"]
    if not facts.tasks:
        lines += ["", "Nothing has been committed yet: no record has come, or this is not the state of that worker.",
                  "Look whether the topics hold records: flowkit topics list --broker URL."]  # fmt: skip
        return "\n".join(lines)
    tasks = sorted(facts.tasks, key=_with_windows_first)
    for task in tasks[:TASKS]:
        lines += ["", *_task(task, facts)]
    if len(tasks) > TASKS:
        lines += ["", f"… and {count(len(tasks) - TASKS, 'more task')}: --json shows all"]
    return "\n".join(lines)


def _kind(kind: str) -> str:
    """A kind of windows in words, from how it was declared.

    >>> _kind("Sliding(size=60000, every=10000, offset=0)"), _kind("Count(n=3, every=None)"), _kind("Odd()")
    ('sliding 1 min every 10 s', 'count 3', 'Odd()')
    """
    name, _, given = kind.rstrip(")").partition("(")
    known: dict[str, Any] = {cls.__name__: cls for cls in (Tumbling, Sliding, Cumulative, Session, Count, Global)}
    fields = dict(pair.split("=", 1) for pair in given.split(", ") if "=" in pair)
    try:
        return window_words(known[name](**{field: None if n == "None" else int(n) for field, n in fields.items()}))
    except (KeyError, TypeError, ValueError):  # of another version of flowkit
        return kind


def _with_windows_first(task: TaskFacts) -> tuple[bool, str]:
    return task.next is None, task.task


def _task(task: TaskFacts, facts: Facts) -> Iterator[str]:
    commit = f"commit {task.commit}" if task.commit else "no commit yet"
    yield f"task {task.task}, {commit}: watermark {_time(task.watermark)}"
    if task.splits:
        rows = [_row(split, facts) for split in task.splits]
        yield from _indented(columns(("SPLIT", "HIGHEST TIME", "OUT OF ORDER", "LAST HEARD", "STATE"), rows))
    if task.windows:
        rows = [_window(window, task) for window in task.windows]
        yield from _indented(columns(("WINDOW", "END", "KEYS", "NEEDS WATERMARK", "WHICH IS"), rows))
        hidden = task.open - sum(not window.fired for window in task.windows)
        if hidden > 0:
            yield f"  … and {count(hidden, 'more window')}" + ("" if task.complete else ", at least")
    yield (
        f"  so far: {count(task.fired, 'firing')} with {count(task.results, 'result')}, {task.late:,} late of "
        f"{count(task.records, 'record')}"
    )
    yield f"  => {reason(task, facts)}"


def _indented(text: str) -> Iterator[str]:
    return (f"  {line}" for line in text.splitlines())


def _row(split: SplitFacts, facts: Facts) -> tuple[str, ...]:
    state = "ended" if split.ended else "idle" if split.idle else "holds the watermark" if split.holds else "ahead"
    heard = "-" if split.heard is None else f"{duration(_round(facts.now - split.heard))} ago"
    return split.name, _time(split.high), duration(split.out_of_order), heard, state


def _window(window: WindowFacts, task: TaskFacts) -> tuple[str, ...]:
    needs = window.end - 1
    if window.fired:
        away = "passed: fired, kept for late records"
    elif task.watermark is None:
        away = "to come"
    else:
        away = f"{duration(needs - task.watermark)} away" if needs > task.watermark else "reached"
    return iso(window.start), iso(window.end), f"{window.keys:,}", iso(needs), away


def _time(ms: int | None) -> str:
    return "none yet" if ms is None else iso(ms)


def _round(ms: int) -> int:
    """To whole seconds, where it is longer than one."""
    return max(0, ms if ms < 1000 else ms // 1000 * 1000)


# The reason, and the cure


def reason(task: TaskFacts, facts: Facts) -> str:
    """Why the next window of a task is not out, and what would help, in a sentence or two."""
    window = task.next
    if task.watermark is not None and task.watermark >= END_OF_TIME - 1:
        return "The input has ended, and all windows have fired."
    if window is None and not (task.watermark is None and task.splits):
        return _nothing_open(task, facts)
    if facts.kind.startswith("Count("):
        return "Its windows close by the number of events of a key, whatever the watermark: send that key more events."
    if facts.kind.startswith("Global("):
        return "Its window is all time: it closes at the end of a bounded run only. early= gives results before."
    if window is not None and task.watermark is not None and window.end - 1 <= task.watermark:
        return "The watermark has reached it: it is being fired, or will be as soon as the worker goes on."
    holders = [split for split in task.splits if split.holds]
    return _held(holders, window, task, facts) if holders else _all_quiet(window, task, facts)


def _nothing_open(task: TaskFacts, facts: Facts) -> str:
    if facts.key is not None:
        return "No window of this key is open: no event of it has come since its last one fired (or all were late)."
    if task.late and not task.fired:
        return (
            "No window is open, and records were late: their windows were over when they came. Allow for more disorder "
            "(out_of_order= of the topic, or allowed_lateness= of the table); the late ones are in the stream .late."
        )
    return "No window is open: everything that came has fired, or nothing has come for this table."


def _needed(window: WindowFacts | None, task: TaskFacts) -> str:
    """Which events would bring the window out: of all splits that the watermark waits for and that are not so far."""
    live = [split for split in task.splits if not split.idle and not split.ended]
    if window is None:
        names = ", ".join(split.name for split in live if split.high is None)
        return f"The watermark begins with an event in {names}."
    short = [split for split in live if split.watermark is None or split.watermark < window.end - 1]
    told = [f"{split.name} at {iso(window.end + split.out_of_order)} or later" for split in short[:SPLITS]]
    if len(short) == 1:
        return f"An event in {told[0]} brings it out."
    more = f", and in {len(short) - SPLITS} more splits" if len(short) > SPLITS else ""
    return f"It comes out after events in {', and in '.join(told)}{more}."


def _held(holders: list[SplitFacts], window: WindowFacts | None, task: TaskFacts, facts: Facts) -> str:
    names = ", ".join(split.name for split in holders)
    verb = "holds" if len(holders) == 1 else "hold"
    first = holders[0]
    never = [split for split in holders if split.high is None]
    if never:
        names = ", ".join(split.name for split in never)
        has = "has" if len(never) == 1 else "have"
        cure = _cure(never, window, task, facts)
        return f"Split {names} {has} sent nothing yet, and {verb} the watermark until then. {cure}"
    silent = min((facts.now - split.heard for split in holders if split.heard is not None), default=None)
    if silent is not None and silent >= SILENT:
        since = f"has been silent for {duration(_round(silent))}"
        cure = _cure(holders, window, task, facts)
        return f"Split {names} {verb} the watermark and {since}. {_needed(window, task)} {cure}"
    if first.out_of_order and window is not None and first.high is not None and first.high >= window.end:
        return (
            f"Its events are past the end already, but split {names} may be out of order by "
            f"{duration(first.out_of_order)} (out_of_order=), and is waited for that much longer. "
            f"{_needed(window, task)}"
        )
    return f"Event time has not come so far: split {names} {verb} the watermark. {_needed(window, task)}"


def _cure(holders: list[SplitFacts], window: WindowFacts | None, task: TaskFacts, facts: Facts) -> str:
    others = [split for split in task.splits if split not in holders and not split.ended]
    alone = not others
    without = [split for split in holders if split.idle_after is None]
    topics = ", ".join(sorted({repr(split.name.rpartition("[")[0]) for split in without}))
    if without and not alone:
        close = "" if facts.close_after_idle is not None else "; if all may fall silent, set close_after_idle= as well"
        return (
            f"Topic {topics} has no idle_after=: set it, and the watermark no longer waits for a split that is silent "
            f"so long{close}."
        )
    if facts.close_after_idle is None:
        return (
            "Event time moves by events only: send one, or set close_after_idle=, which lets the watermark go on by "
            "the clock when all inputs are silent."
        )
    return _will_close(window, task, facts)


def _will_close(window: WindowFacts | None, task: TaskFacts, facts: Facts) -> str:
    assert facts.close_after_idle is not None
    marks = [split.watermark for split in task.splits if split.watermark is not None]
    if not marks:
        return "close_after_idle= goes on from the highest time seen, and there is none yet: it takes a first event."
    # The watermark goes on from the highest split's, as long as all are silent.
    short = 0 if window is None else window.end - 1 - max(marks)
    when = "" if facts.running else ", once a worker runs"
    return (
        "With close_after_idle= it closes by the clock when all inputs have been silent for "
        f"{duration(_round(max(facts.close_after_idle, short)))}{when}."
    )


def _all_quiet(window: WindowFacts | None, task: TaskFacts, facts: Facts) -> str:
    quiet = "All splits are idle or have ended, so the watermark stands still until one sends something."
    if facts.close_after_idle is None:
        return f"{quiet} Set close_after_idle=, and windows close by the clock meanwhile."
    return f"{quiet} {_will_close(window, task, facts)}"
