"""Who runs which task: every worker looks at the same leases and reaches the same conclusion, without a leader.

    tasks 0 1 2 3 4 5, owner before:  a a a a a a     c has just joined, b too
    first look:    a is over-full and releases 2 3 4 5; nobody takes what another one still holds
    second look:   b claims 2 and 4, c claims 3 and 5

Sticky: a worker keeps what it has up to its quota. Balanced: quotas differ by one at most, and the bigger ones go to
those that already hold more. A task changes hands only when its owner releases it or dies. Where it is known what the
workers have on their disks, a free task goes to the one with its newest state, if that one has room.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

NOTHING: Mapping[str, Any] = {}


class Lease(Protocol):
    """Who owns a task, and until when (ms); owner '' if it has been released."""

    @property
    def task(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def expires_ms(self) -> int: ...


class Known(Lease, Protocol):
    """A lease as the broker tells it: also the owner's epoch, and where it keeps the task's state."""

    @property
    def epoch(self) -> int: ...
    @property
    def state(self) -> str: ...


class Placing(NamedTuple):
    """What a worker has to do about its share of the tasks.

    `claims`: by task what the broker knew of it when it looked free, None if nobody has ever had it.
    """

    claims: Mapping[str, Known | None]
    releases: Sequence[str]


class Leases(Protocol):
    """A broker that places tasks by leases."""

    async def leases(self, prefix: str = "") -> Sequence[Known]: ...
    async def members(self, prefix: str = "") -> Sequence[str]: ...


async def place_by_leases(broker: Leases, worker: str, tasks: Sequence[str], held: set[str], now: int) -> Placing:
    """What `worker`, which runs the tasks `held`, has to claim and to release at `now` (ms).

    Names of workers and of tasks begin alike: with the app's name and a slash.
    """
    prefix = f"{worker.partition('/')[0]}/"
    leases = {lease.task: lease for lease in await broker.leases(prefix)}
    members = await broker.members(prefix)
    # A lease of ours without a task behind it is a claim that was broken off: free.
    told = [lease for lease in leases.values() if lease.owner != worker or lease.task in held]
    claims, releases = share(tasks, members, worker, told, now)
    return Placing({task: leases.get(task) for task in claims}, releases)


def share(
    tasks: Sequence[str],
    members: Sequence[str],
    me: str,
    leases: Sequence[Lease],
    now: int,
    disks: Mapping[str, Mapping[str, int]] = NOTHING,
) -> tuple[list[str], list[str]]:
    """What `me` has to claim and to release, among all `tasks` and living `members`, at `now` (ms).

    A lease that has expired, or whose owner is no member, holds nothing. Tasks that are not in `tasks` any more are
    released. One who is no member (it was silent for too long) releases all that it holds. `disks` is by member: by
    task, the number of the last commit that it has on its disk.
    """
    names = sorted(set(tasks))
    owner = {lease.task: lease.owner for lease in leases if lease.owner in members and lease.expires_ms > now}
    if me not in members:
        return [], sorted(lease.task for lease in leases if lease.owner == me)
    held: dict[str, list[str]] = {member: [] for member in sorted(members)}
    for task in names:
        if task in owner:
            held[owner[task]].append(task)
    retired = sorted(task for task, holder in owner.items() if holder == me and task not in set(names))
    free = [task for task in names if task not in owner]
    nearest = {task: _nearest(task, sorted(members), disks) for task in free}
    count = {member: len(tasks) for member, tasks in held.items()}
    quota = _quotas(len(names), count, list(nearest.values()))
    to_release = held[me][quota[me] :] + retired

    to_claim = []
    for task in sorted(free, key=lambda task: (not nearest[task], task)):
        # Quotas sum up to the tasks, and nobody counts more than he holds: there is room for every free one.
        room = [member for member in count if count[member] < quota[member]]
        taker = _nearest(task, room, disks) or min(room, key=lambda m: (count[m], m))
        count[taker] += 1
        if taker == me:
            to_claim.append(task)
    return sorted(to_claim), to_release


def _nearest(task: str, members: Sequence[str], disks: Mapping[str, Mapping[str, int]]) -> str:
    """The one of `members` that has the newest state of the task on its disk; '' if none has any."""
    having = {member: disks[member][task] for member in members if task in disks.get(member, NOTHING)}
    return max(having, key=having.__getitem__, default="")


def _quotas(tasks: int, load: Mapping[str, int], nearest: Sequence[str]) -> dict[str, int]:
    """How many tasks each member may hold, given how many it holds now, and whom each free one is nearest to."""
    each, extra = divmod(tasks, len(load))
    richest_first = sorted(load, key=lambda member: (-load[member], -nearest.count(member), member))
    return {member: each + (rank < extra) for rank, member in enumerate(richest_first)}
