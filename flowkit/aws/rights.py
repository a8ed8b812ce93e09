"""What a role has to be allowed: each part tells it beside its calls, in `rights()`; `policy_of` makes a policy of all.

>>> stream = Right("kinesis", ("PutRecords",), arn("kinesis", "stream/orders", "eu-west-1"))
>>> policy_of([stream], account="123456789012")["Statement"][0]["Resource"]
'arn:aws:kinesis:eu-west-1:123456789012:stream/orders'
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

REGION, ACCOUNT = "REGION", "ACCOUNT"
"""What stands in a policy where nobody has said better."""
_PARTITION, _REGION, _ACCOUNT = "{partition}", "{region}", "{account}"


class Condition(NamedTuple):
    """When a right holds: `operator` ("StringLike") compares the request's `key` with each of `values`; one will do."""

    operator: str
    key: str
    values: tuple[str, ...]


class Right(NamedTuple):
    """`actions` of `service` on `resource` (as `arn` gives it, or "*"), if all `conditions` hold."""

    service: str
    actions: tuple[str, ...]
    resource: str
    conditions: tuple[Condition, ...] = ()


def arn(service: str, name: str, region: str | None = None) -> str:
    """The ARN of what `service` calls `name` ("stream/orders"), in `region` (None: the policy's) and its account.

    What is an ARN already stays as it is: `arn("kinesis", "stream/" + url_place)` need not tell them apart.
    """
    own = name.rpartition("/arn:")[2] if "/arn:" in name else ""
    if own:
        return f"arn:{own}"
    return f"arn:{_PARTITION}:{service}:{region or _REGION}:{_ACCOUNT}:{name}"


def bucket_arn(bucket: str, objects: str = "") -> str:
    """The ARN of a bucket, or of `objects` in it: a key in which only `*` is no letter (see `literal`)."""
    return f"arn:{_PARTITION}:s3:::{bucket}" + (f"/{objects}" if objects else "")


def key_right(key: str, actions: tuple[str, ...], region: str | None = None, *conditions: Condition) -> Right:
    """`actions` with a KMS key: its id or ARN, or an alias ("alias/NAME", or its ARN).

    A policy cannot name an alias as its resource: it allows the key that has the alias when it is asked.
    """
    head, slash, alias = key.partition("alias/")
    if not slash:
        return Right("kms", actions, arn("kms", f"key/{key}", region), conditions)
    keys = f"{head}key/*" if head else arn("kms", "key/*", region)
    named = Condition("ForAnyValue:StringEquals", "kms:ResourceAliases", (f"alias/{alias}",))
    return Right("kms", actions, keys, (*conditions, named))


def via(service: str, region: str | None = None) -> Condition:
    """That a key is used through a service ("s3") and not by itself."""
    return Condition("StringEquals", "kms:ViaService", (f"{service}.{region or _REGION}.amazonaws.com",))


def literal(text: str) -> str:
    """Text for a resource or a condition in which nothing is a wild card.

    >>> literal("a*b?$")
    'a${*}b${?}${$}'
    """
    return "".join(f"${{{letter}}}" if letter in "*?$" else letter for letter in text)


def policy_of(
    rights: Iterable[Right], *, account: str | None = None, region: str | None = None, partition: str = "aws"
) -> dict[str, Any]:
    """An IAM policy that allows `rights` and nothing else; what may be done with several things is said once."""
    names = {_PARTITION: partition, _REGION: region or REGION, _ACCOUNT: account or ACCOUNT}
    actions: dict[tuple[str, str, tuple[Condition, ...]], set[str]] = {}
    for right in rights:
        at = (right.service, right.resource, right.conditions)
        actions.setdefault(at, set()).update(f"{right.service}:{action}" for action in right.actions)
    resources: dict[tuple[str, tuple[str, ...], tuple[Condition, ...]], list[str]] = {}
    for (service, resource, conditions), allowed in actions.items():
        resources.setdefault((service, tuple(sorted(allowed)), conditions), []).append(resource)
    statements: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}
    for (service, allowed_here, conditions), found in sorted(resources.items()):
        number = numbers[service] = numbers.get(service, 0) + 1
        statement: dict[str, Any] = {
            "Sid": f"{service.replace('-', ' ').title().replace(' ', '')}{number}",
            "Effect": "Allow",
            "Action": list(allowed_here),
            "Resource": _one_or_all([_filled(resource, names) for resource in sorted(found)]),
        }
        if conditions:
            statement["Condition"] = _conditions(conditions, names)
        statements.append(statement)
    return {"Version": "2012-10-17", "Statement": statements}


def _conditions(conditions: Iterable[Condition], names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for operator, key, values in conditions:
        found.setdefault(operator, {})[key] = _one_or_all([_filled(value, names) for value in values])
    return found


def _one_or_all(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values


def _filled(text: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text
