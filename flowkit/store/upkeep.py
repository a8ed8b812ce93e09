"""A flush and a compaction: the job, and the edit that makes its outputs count.

While a job is done commits go on, and may drop spaces of its inputs: those are hidden in its outputs.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from flowkit.store.block import PACKINGS
from flowkit.store.compaction import Choice
from flowkit.store.core import Core
from flowkit.store.events import tell
from flowkit.store.frame import BEGINNING, Space
from flowkit.store.jobs import Done
from flowkit.store.journal import Journal
from flowkit.store.log import log_number
from flowkit.store.sstable_index import FileMeta
from flowkit.store.staleness import note_flush, note_merge, stale_beneath
from flowkit.store.version import Edit, Hidden, next_run
from flowkit.store.whole import in_thread


async def flush_oldest(core: Core, journal: Journal) -> None:
    """Make a run of level 0 of the memtable that was set aside first."""
    view, kept = core.view, journal.set_aside[0]
    stale = await stale_beneath(core, kept.memtable)
    bottom = [space for space in set(kept.memtable.spaces) if space not in view.version.runs]
    done = await flush(core, kept.logs, next_run(view.version.files.values()), now=kept.base[3], bottom=bottom)
    # What was dropped since it was set aside is no longer in the memtable, but still in the job's logs.
    hide = [row for row in _parts_of(done.files) if (row[1], row[2]) not in kept.memtable.spaces]
    add, hide = _without_hidden(done.files, hide)
    core.logs_from = log_number(journal.set_aside[1].logs[0] if len(journal.set_aside) > 1 else journal.logs[0])
    core.base = kept.base
    del journal.set_aside[0]
    view.frozen.remove(kept.memtable)
    for space, keys in kept.memtable.spaces.items():
        view.rows.forget(space, keys.merged().keys())
    note_flush(core, add, stale)
    await core.change(Edit(add, [], hide, core.logs_from, kept.base))
    core.counts.flushes += 1
    core.counts.flushed += done.written
    core.counts.background_seconds += done.seconds
    core.letting_go = True
    try:
        core.moved.set()  # who waits for room need not wait until the memtable has been let go of
        await in_thread(core.remove, [*journal.not_held(kept.logs), *_unused(core, done, add)])
        await kept.memtable.let_go()
    finally:
        core.letting_go = False


async def flush(core: Core, logs: Sequence[Path], run: int, **fields: Any) -> Done:
    """Make a run of level 0 of some logs; nothing names it yet. Raises StoreError."""
    names = [path.name for path in logs]
    packing = PACKINGS[core.options.packing]
    return await core.runner.run(core.job(level=0, run=run, logs=names, packing=packing, urgent=True, **fields))


async def compact(core: Core, choice: Choice) -> None:
    """Merge what was chosen, or only move it to its level."""
    names = [meta.name for meta in choice.inputs]
    if choice.moves:
        moved = [msgspec.structs.replace(meta, level=choice.level, run=0) for meta in choice.inputs]
        await core.change(Edit(moved, names))
        return
    view = core.view
    before = view.version.hidden
    done = await _merged(core, choice, [row for row in before if row[0] in set(names)])
    since = {(table, end) for name, table, end in view.version.hidden - before if name in set(names)}
    for meta in choice.inputs:
        if meta.name not in view.version.files:  # all of it was dropped
            since |= {part.space for part in meta.spaces if (meta.name, part.table, part.end) not in before}
    add, hide = _without_hidden(done.files, [row for row in _parts_of(done.files) if (row[1], row[2]) in since])
    if choice.level == 0:
        note_merge(core, choice.inputs, add)
    await core.change(Edit(add, names, hide))
    await in_thread(core.remove, _unused(core, done, add))
    core.counts.compactions += 1
    core.counts.compaction_read += done.read
    core.counts.compacted += done.written
    core.counts.compaction_seconds += done.seconds
    core.counts.background_seconds += done.seconds
    tell("debug", "compacted", path=str(core.path), to_level=choice.level, inputs=len(names), outputs=len(done.files))


async def _merged(core: Core, choice: Choice, hidden: list[Hidden]) -> Done:
    packing = core.options.cold_packing if choice.level > 1 else core.options.packing
    job = core.job(
        level=choice.level,
        run=max(meta.run for meta in choice.inputs) if choice.level == 0 else 0,
        runs=_runs_of(choice.inputs),
        hidden=hidden,
        # What expired by a later clock could be alive again if a power failure takes the commits that moved it.
        now=BEGINNING if core.base is None else core.base[3],
        bottom=_bottom(core.view.version.files.values(), choice),
        packing=PACKINGS[packing],
    )
    return await core.runner.run(job)


def _runs_of(inputs: Sequence[FileMeta]) -> list[list[str]]:
    """Names by sorted run, in the order given (oldest first)."""
    runs: dict[tuple[int, int], list[str]] = {}
    for meta in inputs:
        runs.setdefault((meta.level, meta.run if meta.level == 0 else 0), []).append(meta.name)
    return list(runs.values())


def _bottom(files: Iterable[FileMeta], choice: Choice) -> list[Space]:
    """The spaces of the inputs that no older file has."""
    names = {meta.name for meta in choice.inputs}
    oldest = min((meta.run for meta in choice.inputs if meta.level == 0), default=0)
    older = {
        part.space
        for meta in files
        if meta.name not in names
        and (meta.level > choice.level or (choice.level == 0 and (meta.level > 0 or meta.run < oldest)))
        for part in meta.spaces
    }
    # In the target level, what is not an input does not overlap; but its deletes may stand above deeper levels only.
    return [space for space in {part.space for meta in choice.inputs for part in meta.spaces} if space not in older]


def _parts_of(files: Sequence[FileMeta]) -> list[Hidden]:
    return [(meta.name, part.table, part.end) for meta in files for part in meta.spaces]


def _without_hidden(files: Sequence[FileMeta], hide: list[Hidden]) -> tuple[list[FileMeta], list[Hidden]]:
    """New files but for those in which everything was dropped while they were being written."""
    if not hide:
        return list(files), []
    hidden = set(hide)
    kept = [meta for meta in files if any((meta.name, part.table, part.end) not in hidden for part in meta.spaces)]
    names = {meta.name for meta in kept}
    return kept, [row for row in hide if row[0] in names]


def _unused(core: Core, done: Done, added: Sequence[FileMeta]) -> list[Path]:
    return [core.path / meta.name for meta in done.files if meta not in added]
