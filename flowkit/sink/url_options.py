"""What a URL says behind `?` to one destination: taken one by one, and all that is wrong told at once."""

import re
from collections.abc import Iterable, Mapping

from flowkit.errors import ConfigError

UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


class UrlOptions:
    """The options of one URL, which `where` names. Ask for each, then call `done`.

    >>> options = UrlOptions({"ttl_after": "7d", "write": "batch"}, "dynamodb://t")
    >>> options.duration("ttl_after"), options.choice("write", ("conditional", "batch")), options.whole("calls", 32)
    (604800000, 'batch', 32)
    >>> options.done()
    """

    def __init__(self, options: Mapping[str, str], where: str) -> None:
        self.where, self.problems = where, list[str]()
        self._options, self._known = dict(options), list[str]()

    def text(self, name: str, default: str | None = None) -> str | None:
        """What stands there; empty is as if it was not there."""
        self._known.append(name)
        return self._options.pop(name, "") or default

    def choice(self, name: str, choices: Iterable[str]) -> str:
        """One of `choices`; the first one unless told."""
        there = list(choices)
        found = self.text(name, there[0]) or there[0]
        if found not in there:
            self.problems.append(f"{self.where}: {name}={found}: there are {', '.join(there)}")
        return found

    def whole(self, name: str, default: int, least: int = 1, most: int = 1_000) -> int:
        """A whole number."""
        found = self.text(name)
        if found is None:
            return default
        if not found.isdecimal() or not least <= int(found) <= most:
            self.problems.append(f"{self.where}: {name}={found}: needs a whole number from {least} to {most}")
            return default
        return int(found)

    def duration(self, name: str) -> int | None:
        """A length of time such as 7d, 90s, 1.5h, in ms."""
        found = self.text(name)
        if found is None:
            return None
        parts = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", found)
        if parts is None or parts[2] not in UNITS_MS:
            units = ", ".join(UNITS_MS)
            self.problems.append(f"{self.where}: {name}={found}: needs a number and one of {units}, such as 7d")
            return None
        return round(float(parts[1]) * UNITS_MS[parts[2]])

    def done(self, *others: str) -> None:
        """Raise ConfigError with all that is wrong, and what nobody asked for; `others` are known elsewhere."""
        there = ", ".join(sorted([*self._known, *others]))
        self.problems += [f"{self.where}: unknown option {name!r}; there are {there}" for name in self._options]
        if self.problems:
            raise ConfigError(*self.problems)
