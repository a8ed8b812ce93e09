"""What to compact next: a pure choice over the levels.

    level 0      runs, the newest first, each sorted: one for every flush, and what small ones were merged to
    level 1 …    one sorted run each; a level may be `multiplier` times as large as the one above

Runs gather in level 0, and `l0_runs` of about one size are merged to one, so that few places have to be looked at. They
are merged with level 1 once they hide too much of it (`worth`), or are as large as it may be. New keys hide nothing:
to fill a store with them writes each record once more for every time that it grows eightfold, where merging by size
alone, at a fifth of level 1, wrote it 1.9 times on the way to 10M. That is tiering above, leveling below. Files of a
lower level are merged down one by one, those first that overlap the least.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import msgspec

from flowkit.errors import ConfigError
from flowkit.store.frame import Space
from flowkit.store.sstable_index import FileMeta, SpaceMeta


class CompactionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """When levels are merged. Sizes in bytes.

    `l0_runs` runs of level 0 are merged if they are of about one size; into level 1 if what is stale beneath them is
    `worth` it (a fraction of what is not) or has `l1_bytes` / 4, or if they have `l1_bytes` themselves.
    Level 1 may have `l1_bytes`, each further one `multiplier` times the one above.
    """

    l0_runs: int = 8
    worth: float = 0.2
    l1_bytes: int = 2**30
    multiplier: int = 8

    def __post_init__(self) -> None:
        if self.l0_runs < 2 or self.multiplier < 2:
            raise ConfigError(f"l0_runs and multiplier must be 2 or more, not {self.l0_runs} and {self.multiplier}")


class Choice(NamedTuple):
    """Merge `inputs` (oldest first, runs as they are sorted) into `level`. `moves`: nothing overlaps, names only
    change.
    """

    inputs: list[FileMeta]
    level: int
    moves: bool = False


_UNKNOWN: Mapping[str, int] = {}


def choose(
    files: Mapping[str, FileMeta],
    options: CompactionOptions,
    stale: Mapping[str, int] = _UNKNOWN,
    *,
    all_of_it: bool = False,
    idle: bool = False,
) -> Choice | None:
    """The next merge, or None if there is nothing to do.

    `stale`: how many bytes of older files those of level 0 hide, about; for a file that is not in it, as many as it
    has. `all_of_it`: down to a single level, whatever that costs. `idle`: whatever lies in level 0, since nothing else
    is to be done.
    """
    levels = by_level(files.values())
    runs = _runs(levels.get(0, []))
    deepest = max(levels, default=0)
    if all_of_it:
        upper = [level for level in sorted(levels) if level]
        if not runs and len(upper) <= 1:
            return None
        target = max(1, deepest)
        inputs = [meta for level in reversed(upper) for meta in levels[level]]
        inputs += [meta for run in reversed(runs) for meta in run]
        return Choice(inputs, target)
    if len(runs) >= options.l0_runs:
        choice = _from_level_0(runs, levels, options, stale)
        if choice is not None:
            return choice
    if idle and len(runs) > 1:
        return _into_level_1(runs, levels)
    return _from_below(levels, options)


def by_level(files: Iterable[FileMeta]) -> dict[int, list[FileMeta]]:
    """Files by level."""
    levels: dict[int, list[FileMeta]] = {}
    for meta in files:
        levels.setdefault(meta.level, []).append(meta)
    return levels


def _runs(files: Sequence[FileMeta]) -> list[list[FileMeta]]:
    """The runs of level 0, newest first."""
    runs: dict[int, list[FileMeta]] = {}
    for meta in files:
        runs.setdefault(meta.run, []).append(meta)
    return [runs[number] for number in sorted(runs, reverse=True)]


def size_of(files: Iterable[FileMeta]) -> int:
    """Bytes of some files together."""
    return sum(meta.bytes for meta in files)


def _from_level_0(
    runs: list[list[FileMeta]],
    levels: Mapping[int, list[FileMeta]],
    options: CompactionOptions,
    stale: Mapping[str, int],
) -> Choice | None:
    into = _into_level_1(runs, levels)
    ours, below = sum(map(size_of, runs)), size_of(levels.get(1, []))
    hidden = sum(stale.get(meta.name, meta.bytes) for run in runs for meta in run)
    too_stale = hidden >= min(options.worth * (below + ours - hidden), options.l1_bytes // 4)
    if into.moves or too_stale or ours >= options.l1_bytes:
        return into
    equals = _equals(runs, options.l0_runs)
    return None if equals is None else Choice([meta for run in reversed(equals) for meta in run], 0)


def _equals(runs: list[list[FileMeta]], least: int) -> list[list[FileMeta]] | None:
    """`least` or more neighbours of about one size, the newest: to merge a large run with small ones would write it
    again for little.

    There are always some among `2 * least` runs, so that commits never wait for a merge that no one would begin.
    """
    some: list[list[FileMeta]] = []
    size = 0
    for run in runs:
        if some and size_of(run) * len(some) > 2 * size:
            if len(some) >= least:
                break
            some, size = [], 0
        some.append(run)
        size += size_of(run)
    if len(some) >= least:
        return some
    return runs[:least] if len(runs) >= 2 * least else None


def _into_level_1(runs: list[list[FileMeta]], levels: Mapping[int, list[FileMeta]]) -> Choice:
    inputs = [meta for run in reversed(runs) for meta in run]
    touched = _under(inputs, levels.get(1, []))
    return Choice([*touched, *inputs], 1, moves=not touched and _are_apart(inputs))


def _are_apart(files: Sequence[FileMeta]) -> bool:
    """True if no two files share a part of a space's key range: as of windows that have come one after the other."""
    parts: dict[Space, list[tuple[bytes, bytes]]] = {}
    for part in chain.from_iterable(meta.spaces for meta in files):
        parts.setdefault(part.space, []).append((part.first, part.last))
    for ranges in parts.values():
        ranges.sort()
        if any(before[1] >= after[0] for before, after in pairwise(ranges)):
            return False
    return True


def _from_below(levels: Mapping[int, list[FileMeta]], options: CompactionOptions) -> Choice | None:
    limit = options.l1_bytes
    for level in range(1, max(levels, default=0) + 1):
        files = levels.get(level, [])
        if size_of(files) > limit:
            below = levels.get(level + 1, [])
            overlaps = [(size_of(overlapping([meta], below)) / max(1, meta.bytes), meta.name, meta) for meta in files]
            _, _, meta = min(overlaps, key=_overlap)
            touched = _under([meta], below)
            return Choice([*touched, meta], level + 1, moves=not touched)
        limit *= options.multiplier
    return None


def _overlap(row: tuple[float, str, FileMeta]) -> tuple[float, str]:
    return row[:2]


def _under(files: Sequence[FileMeta], below: Sequence[FileMeta]) -> list[FileMeta]:
    """Those of a level that must take part when `files` are merged into it.

    More than those that overlap one of them: an output may reach from the first key of one input to the last key of
    another, and no other file of the level may lie between.
    """
    touched: list[FileMeta] = []
    while True:
        hull: dict[Space, tuple[bytes, bytes]] = {}
        for part in chain.from_iterable(meta.spaces for meta in chain(files, touched)):
            first, last = hull.get(part.space, (part.first, part.last))
            hull[part.space] = min(first, part.first), max(last, part.last)
        found = [meta for meta in below if any(_within(part, hull.get(part.space)) for part in meta.spaces)]
        if len(found) == len(touched):
            return found
        touched = found


def _within(part: SpaceMeta, span: tuple[bytes, bytes] | None) -> bool:
    return span is not None and part.first <= span[1] and span[0] <= part.last


def overlapping(files: Iterable[FileMeta], others: Sequence[FileMeta]) -> list[FileMeta]:
    """Those of `others` that share a space's key range with one of `files`."""
    ranges: dict[tuple[str, int | None], list[tuple[bytes, bytes]]] = {}
    for meta in files:
        for part in meta.spaces:
            ranges.setdefault(part.space, []).append((part.first, part.last))
    return [meta for meta in others if _touches(meta, ranges)]


def _touches(meta: FileMeta, ranges: Mapping[tuple[str, int | None], list[tuple[bytes, bytes]]]) -> bool:
    for part in meta.spaces:
        for first, last in ranges.get(part.space, ()):
            if part.first <= last and first <= part.last:
                return True
    return False
