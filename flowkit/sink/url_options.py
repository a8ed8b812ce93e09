"""What a URL says behind `?` to one destination: taken one by one, and all that is wrong told at once."""

import re
from collections.abc import Iterable, Mapping

from flowkit.errors import ConfigError

UNITS_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


class UrlOptions:
    """The options of one URL, which `where` names. Ask for each, then call `done`.

    >>> options = UrlOptions({"ttl_after": "7d", "write": "batch"}, "dynamodb://t")
    >>> options.duration("ttl_after"), options.choice("write", ("conditional", "batch")), options.whole("calls", 32)
    (604800000, 'batch', 32)
    >>> options.done()
    >>> UrlOptions({"roll_bytes": "1.5KiB"}, "s3://b").size("roll_bytes")
    1536
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

    def duration(self, name: str, least: int = 0) -> int | None:
        """A length of time such as 7d, 90s, 1.5h, in ms."""
        return self._measured(name, UNITS_MS, least, "ms")

    def size(self, name: str, least: int = 0, most: int | None = None) -> int | None:
        """A number of bytes such as 128MiB, 5MB, 4096."""
        return self._measured(name, UNITS_BYTES, least, "bytes", most)

    def _measured(
        self, name: str, units: Mapping[str, int], least: int, what: str, most: int | None = None
    ) -> int | None:
        found = self.text(name)
        if found is None:
            return None
        parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", found)
        if parts is None or parts[2] not in units:
            there, such = ", ".join(filter(None, units)), "7d" if "d" in units else "128MiB"
            self.problems.append(f"{self.where}: {name}={found}: needs a number with a unit: {there}, such as {such}")
            return None
        number = round(float(parts[1]) * units[parts[2]])
        if number < least or (most is not None and number > most):
            limit = f"less than {least}" if number < least else f"more than {most}"
            self.problems.append(f"{self.where}: {name}={found}: is {limit} {what}")
            return None
        return number

    def done(self, *others: str) -> None:
        """Raise ConfigError with all that is wrong, and what nobody asked for; `others` are known elsewhere."""
        there = ", ".join(sorted([*self._known, *others]))
        self.problems += [f"{self.where}: unknown option {name!r}; there are {there}" for name in self._options]
        if self.problems:
            raise ConfigError(*self.problems)
