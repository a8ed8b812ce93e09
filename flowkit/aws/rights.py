"""What a role has to be allowed: each part tells it beside its calls, in `rights()`; `policy_of` makes a policy of all.

>>> stream = Right("kinesis", ("PutRecords",), arn("kinesis", "stream/orders", "eu-west-1"))
>>> policy_of([stream], account="123456789012")["Statement"][0]["Resource"]
'arn:aws:kinesis:eu-west-1:123456789012:stream/orders'
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

REGION, ACCOUNT = "REGION", "ACCOUNT"
"""What stands in a policy where nobody has said better."""
VIA = "kms:ViaService"
PARTITIONS = (
    *(("cn-", "aws-cn"), ("us-gov-", "aws-us-gov"), ("us-iso-", "aws-iso"), ("us-isob-", "aws-iso-b")),
    *(("eu-isoe-", "aws-iso-e"), ("us-isof-", "aws-iso-f"), ("eusc-", "aws-eusc")),
)
"""How the names of regions begin that are not in the partition `aws`."""
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


def partition_of(region: str) -> str:
    """The partition that a region belongs to.

    >>> partition_of("eu-west-1"), partition_of("cn-north-1"), partition_of("us-gov-west-1")
    ('aws', 'aws-cn', 'aws-us-gov')
    """
    return next((partition for start, partition in PARTITIONS if region.startswith(start)), "aws")


def via(service: str, region: str | None = None) -> Condition:
    """That a key is used through a service ("s3") and not by itself."""
    return Condition("StringEquals", VIA, (f"{service}.{region or _REGION}.amazonaws.com",))


def literal(text: str) -> str:
    """Text for a resource or a condition in which nothing is a wild card.

    >>> literal("a*b?$")
    'a${*}b${?}${$}'
    """
    return "".join(f"${{{letter}}}" if letter in "*?$" else letter for letter in text)


def policy_of(
    rights: Iterable[Right], *, account: str | None = None, region: str | None = None, partition: str | None = None
) -> dict[str, Any]:
    """An IAM policy that allows `rights` and nothing else; what may be done with several things is said once.

    `partition` None: that of each thing's region; of what names none that of `region`, or else of the first one named.
    """
    rights = list(rights)
    named = [region, *(_region_of(right.resource) for right in rights), "?"]
    usual = partition_of(next(name for name in named if name))
    names = {_REGION: region or REGION, _ACCOUNT: account or ACCOUNT}

    def filled(resource: str) -> str:
        own = _region_of(resource)
        return _filled(resource, {**names, _PARTITION: partition or (partition_of(own) if own else usual)})

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
            "Resource": _one_or_all([filled(resource) for resource in sorted(found)]),
        }
        if conditions:
            statement["Condition"] = _conditions(conditions, names)
        statements.append(statement)
    return {"Version": "2012-10-17", "Statement": statements}


def _conditions(conditions: Iterable[Condition], names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for operator, key, values in conditions:
        said = [_filled(value, names) for value in values]
        if key == VIA:
            said += [f"{value}.cn" for value in said if ".cn-" in value]  # hosts in China are named so; either is right
        found.setdefault(operator, {})[key] = _one_or_all(said)
    return found


def _region_of(resource: str) -> str:
    """The region that an ARN names; '' if it leaves that to the policy, or has none."""
    parts = resource.split(":")
    return "" if len(parts) < 4 or parts[3] == _REGION else parts[3]


def _one_or_all(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values


def _filled(text: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text
