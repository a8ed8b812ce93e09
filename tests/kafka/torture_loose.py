"""What the tortured app may have sent at least once, and how what it sent differs from all of that.

Tasks that read the topic of events have exact state, so their outputs come again, but never others: `users`. A file
comes with the frame, and is that of an unbroken run: `ledger`. What goes on by another key may come again, and is new
to the task that takes it: it counts every copy, and each exactly once. So `items` must add up, event by event, to more
events perhaps, but never fewer; a window has what the model's has, and perhaps copies of that; and a window of windows
has all of those that were sent, and perhaps copies.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from tests.kafka.torture_app import LARGE, SIZE_MS
from tests.kafka.torture_model import Book, end_of, users_differences

T = TypeVar("T")

Window = tuple[str, int]
"""Key and end."""
Sums = tuple[int, int]
"""Number and total."""


def loose_differences(book: Book, rows: Mapping[str, list[Any]]) -> list[str]:
    """How the outputs differ from all those that are possible, in words; nothing if they are among them."""
    found = _users(book, rows["users"]) + _items(book, rows["items"])
    shops, wrong = _once(row for row in rows["shops"] if row["end"] <= book.last and row["key"] != "last")
    found += wrong + _windows("shops", {window: book.values[window] for window in book.closed}, shops)
    sizes, wrong = _once(row for row in rows["sizes"] if row["end"] <= book.last)
    found += wrong + _windows("sizes", sizes_of(shops), sizes)
    if "ledger" in rows:
        found += users_differences(book, rows["ledger"], "ledger")
    return found + [f"dead letter: {row}" for row in rows["dead-letters"][:5]]


def is_drained_loosely(book: Book, rows: Mapping[str, list[Any]]) -> bool:
    """Whether everything has come that must come at least."""
    shops, _ = _once(row for row in rows["shops"] if row["key"] != "last")
    sizes, _ = _once(rows["sizes"])
    return (
        len({row["n"] for row in rows["users"]}) >= book.n
        and len({row["n"] for row in rows["items"]}) >= book.n
        and shops.keys() >= book.closed.keys()
        and sizes.keys() >= sizes_of({window: shops[window] for window in book.closed}).keys()
    )


def items_sent(rows: Iterable[Any]) -> dict[str, Sums]:
    """By item, the last totals: what its table must hold."""
    last: dict[str, Sums] = {}
    for row in rows:
        last[row["key"]] = max(last.get(row["key"], (0, 0)), (row["count"], row["total"]))
    return last


def sizes_of(shops: Mapping[Window, Sums]) -> dict[Window, list[int]]:
    """The totals of the windows that make up each window of windows."""
    found: dict[Window, list[int]] = defaultdict(list)
    for (_, end), (count, total) in shops.items():
        found["large" if count > LARGE else "small", end_of(end - 1, SIZE_MS)].append(total)
    return found


def _users(book: Book, rows: Sequence[Any]) -> list[str]:
    """Each user's totals are the model's; they come in order when they first come."""
    sent: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for row in rows:
        sent[row["key"]].append((row["n"], row["count"], row["total"]))
    found = []
    for user in sorted(book.users.keys() | sent.keys()):
        ours, theirs = book.users.get(user, []), _first(sent.get(user, []))
        if ours != theirs:
            at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), -1)
            lost = len(set(ours) - set(theirs))
            found.append(
                f"users: {user}: of {len(ours)} totals {lost} events lost; from the {at + 1}th on the model has "
                f"(n, count, total) {ours[at : at + 3]}, the app sent {theirs[at : at + 3]}"
            )
    return found


def _items(book: Book, rows: Sequence[Any]) -> list[str]:
    """Each item's totals go on from one another, each by an event of the model, and no event is missing."""
    sent: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for row in rows:
        sent[row["key"]].append((row["count"], row["n"], row["total"]))
    found = []
    for item in sorted(book.items.keys() | sent.keys()):
        ours, theirs = book.items.get(item, {}), _first(sent.get(item, []))
        lost = sorted(ours.keys() - {n for _, n, _ in theirs})
        if lost:
            found.append(f"items: {item}: {len(lost)} events lost: {lost[:10]}")
        total = 0
        for number, (count, n, said) in enumerate(theirs, 1):
            total += ours.get(n, 0)
            if n not in ours or (count, said) != (number, total):
                found.append(
                    f"items: {item}: not the model's: event {n} must make it {(number, total)}, not {(count, said)}"
                )
                break
    return found


def _once(rows: Iterable[Any]) -> tuple[dict[Window, Sums], list[str]]:
    """By window what was sent for it, and which were sent with more than one content."""
    sent: dict[Window, Sums] = {}
    wrong = []
    for row in rows:
        window, sums = (row["key"], row["end"]), (row["count"], row["total"])
        if sent.setdefault(window, sums) != sums:
            wrong.append(f"window {window} is not the model's: it was sent as {sent[window]} and as {sums}")
    return sent, wrong[:3]


def _windows(name: str, model: Mapping[Window, Sequence[int]], sent: Mapping[Window, Sums]) -> list[str]:
    """Each window has the values that the model has for it, and perhaps copies of them."""
    wrong = []
    for window in sorted(model.keys() | sent.keys()):
        values, sums = model.get(window, ()), sent.get(window)
        if not values or sums is None:
            wrong.append(window)
            continue
        copies, more = sums[0] - len(values), sums[1] - sum(values)
        if copies < 0 or not copies * min(values) <= more <= copies * max(values):
            wrong.append(window)
    told = [f"{w}: {len(model.get(w, ()))}, {sum(model.get(w, ()))}, sent {sent.get(w)}" for w in wrong[:3]]
    return [f"{name}: {len(wrong)} of {len(model)} windows are not the model's: {'; '.join(told)}"] if wrong else []


def _first(rows: Iterable[T]) -> list[T]:
    """Each of them once, where it first comes."""
    return list(dict.fromkeys(rows))
