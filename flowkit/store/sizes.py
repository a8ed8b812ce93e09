"""How much each table holds: told from what memtables and sstables know of themselves, without reading a block."""

from typing import NamedTuple

from flowkit.store.reading import Reading


class Size(NamedTuple):
    """About how many keys a table has, and bytes of keys and values.

    At most, that is: in sstables a key counts in each that has it, and what was deleted counts until it is compacted.
    """

    keys: int = 0
    bytes: int = 0


def table_sizes(store: Reading) -> dict[str, Size]:
    """By table, all its windows together. Costs some microseconds a file and space, and a hash of what is unmerged."""
    found: dict[str, Size] = {}

    def add(table: str, keys: int, size: int) -> None:
        before = found.get(table, Size())
        found[table] = Size(before.keys + keys, before.bytes + size)

    hiding = set()
    for memtable in (store.memtable, *store.frozen):
        for space, held in memtable.spaces.items():
            if space not in hiding:
                add(space[0], len(held.merged()), held.bytes)
        hiding |= memtable.dropped
    version = store.version
    for meta in version.files.values():
        for part in meta.spaces:
            if part.space not in hiding and (meta.name, part.table, part.end) not in version.hidden:
                add(part.table, part.records, part.bytes)
    return found
