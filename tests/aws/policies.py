"""Policies, and which of their statements allow what was asked for: what IAM would do, for our actions.

Only what our policies are made of is known: Allow statements, `*` and `?` in resources, a few operators. `readings` has
what a request asks for.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

ACCOUNT, AREA = "000000000000", "us-east-1"
WHO = "AROAEXAMPLE:flowkit"
"""What a policy calls ${aws:userid}."""
SIZE = 6_144
"""Characters that a managed policy may have, white space left out."""


class Asked(NamedTuple):
    """One action on one resource. `keys` are those of conditions."""

    action: str
    resource: str
    keys: dict[str, list[str]]


class Grant(NamedTuple):
    """One action on one resource that a policy allows, of its statement number `statement`."""

    statement: int
    action: str
    resource: str


class Policy:
    """A policy of Allow statements. `used` are the grants that something was allowed by."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.statements: Sequence[Mapping[str, Any]] = document["Statement"]
        assert all(statement["Effect"] == "Allow" for statement in self.statements)
        self.used: set[Grant] = set()

    def allows(self, asked: Asked) -> bool:
        """True if any statement does."""
        found = self._found(asked)
        self.used |= found
        return bool(found)

    def would_allow(self, asked: Asked) -> bool:
        """The same, of what nobody has asked for."""
        return bool(self._found(asked))

    def _found(self, asked: Asked) -> set[Grant]:
        return {
            grant
            for grant in self._grants()
            if grant.action == asked.action
            and matches(grant.resource, asked.resource)
            and _holds(self.statements[grant.statement].get("Condition", {}), asked.keys)
        }

    def unused(self) -> set[Grant]:
        """What was allowed in vain."""
        return set(self._grants()) - self.used

    def _grants(self) -> Iterable[Grant]:
        for number, statement in enumerate(self.statements):
            for action in _all(statement["Action"]):
                for resource in _all(statement["Resource"]):
                    yield Grant(number, action, resource)


def _holds(conditions: Mapping[str, Mapping[str, Any]], keys: Mapping[str, list[str]]) -> bool:
    for operator, wanted in conditions.items():
        test = {"StringLike": matches, "StringEquals": str.__eq__}[operator.removeprefix("ForAnyValue:")]
        for key, patterns in wanted.items():
            patterns_here = [pattern.replace("${aws:userid}", WHO) for pattern in _all(patterns)]
            if not any(test(pattern, value) for pattern in patterns_here for value in keys.get(key, ())):
                return False
    return True


def matches(pattern: str, text: str) -> bool:
    """As IAM compares: `*` is anything, `?` a letter, `${*}` a star itself."""
    parts = re.split(r"(\$\{[*?$]\}|[*?])", pattern)
    regex = "".join({"*": ".*", "?": "."}.get(p, re.escape(p[2] if p.startswith("${") else p)) for p in parts)
    return re.fullmatch(regex, text, re.DOTALL) is not None


def _all(value: Any) -> Iterable[str]:
    return [value] if isinstance(value, str) else value
