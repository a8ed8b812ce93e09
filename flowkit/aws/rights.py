"""What a role has to be allowed: each part tells it beside its calls, in `rights()`; `policy_of` makes a policy of all.

>>> stream = Right("kinesis", ("PutRecords",), arn("kinesis", "stream/orders", "eu-west-1"))
>>> policy_of([stream], account="123456789012")["Statement"][0]["Resource"]
'arn:aws:kinesis:eu-west-1:123456789012:stream/orders'
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

REGION, ACCOUNT = "REGION", "ACCOUNT"
"""What stands in a policy where nobody has said better."""
PARTITIONS = {
    "cn-": "aws-cn",
    "eu-isoe-": "aws-iso-e",
    "eusc-": "aws-eusc",
    "us-gov-": "aws-us-gov",
    "us-iso-": "aws-iso",
    "us-isob-": "aws-iso-b",
    "us-isof-": "aws-iso-f",
}
"""By what the names of their regions begin with; all others are of `aws`."""
MANAGED, INLINE = 6_144, 10_240
"""Characters, white space left out, that a managed policy may have, and all inline ones of a role together."""

VIA = "kms:ViaService"
_PARTITION, _REGION, _ACCOUNT, _CLUSTER = "{partition}", "{region}", "{account}", "{cluster}"


class Condition(NamedTuple):
    """When a right holds: `operator` ("StringLike") compares the request's `key` with each of `values`; one will do."""

    operator: str
    key: str
    values: tuple[str, ...]


class Right(NamedTuple):
    """`actions` of `service` on `resource` (as `arn` gives it, or "*"), if all `conditions` hold.

    `why` tells people what they are for.
    """

    service: str
    actions: tuple[str, ...]
    resource: str
    conditions: tuple[Condition, ...] = ()
    why: str = ""


def arn(service: str, name: str, region: str | None = None) -> str:
    """The ARN of what `service` calls `name` ("stream/orders"), in `region` (None: the policy's) and its account.

    What is an ARN already stays as it is: `arn("kinesis", "stream/" + url_place)` need not tell them apart.
    """
    own = name.rpartition("/arn:")[2] if "/arn:" in name else ""
    if own:
        return f"arn:{own}"
    return f"arn:{_PARTITION}:{service}:{region or _REGION}:{_ACCOUNT}:{name}"


def msk_arn(kind: str, name: str = "", region: str | None = None) -> str:
    """The ARN of a `kind` (topic, group, transactional-id; cluster) of the MSK cluster that the policy is for.

    Which one that is no URL tells: `name` is a pattern (see `literal`) after the cluster's name and id.
    """
    return arn("kafka", f"{kind}/{_CLUSTER}" + (f"/{name}" if name else ""), region)


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
    return Condition("StringEquals", VIA, (f"{service}.{region or _REGION}.amazonaws.com",))


def literal(text: str) -> str:
    """Text for a resource or a condition in which nothing is a wild card.

    >>> literal("a*b?$")
    'a${*}b${?}${$}'
    """
    return "".join(f"${{{letter}}}" if letter in "*?$" else letter for letter in text)


def partition_of(region: str | None) -> str:
    """The partition of a region.

    >>> partition_of("eu-west-1"), partition_of("cn-north-1"), partition_of("us-gov-west-1")
    ('aws', 'aws-cn', 'aws-us-gov')
    """
    return next((name for start, name in PARTITIONS.items() if (region or "").startswith(start)), "aws")


class Statement(NamedTuple):
    """One statement of a policy, as JSON has it, and what it is for."""

    body: dict[str, Any]
    whys: tuple[str, ...]


def policy_of(
    rights: Iterable[Right],
    *,
    account: str | None = None,
    region: str | None = None,
    partition: str | None = None,
    cluster: str | None = None,
) -> dict[str, Any]:
    """An IAM policy that allows `rights` and nothing else; see `statements_of`."""
    found = statements_of(rights, account=account, region=region, partition=partition, cluster=cluster)
    return {"Version": "2012-10-17", "Statement": [statement.body for statement in found]}


def size_of(policy: Mapping[str, Any]) -> int:
    """How many characters a policy has, as IAM counts them.

    >>> size_of({"Version": "2012-10-17", "Statement": []})
    39
    """
    return len(json.dumps(policy, separators=(",", ":")))


def statements_of(
    rights: Iterable[Right],
    *,
    account: str | None = None,
    region: str | None = None,
    partition: str | None = None,
    cluster: str | None = None,
) -> list[Statement]:
    """Statements that allow `rights` and nothing else; what may be done with several things is said once.

    `cluster` is NAME/ID of the MSK cluster (None: any). If nobody says the `partition`, the regions do: the policy's,
    or the first one that a right names.
    """
    rights = list(rights)
    partition = partition or partition_of(region or next(filter(None, map(_region_of, rights)), None))
    names = {_PARTITION: partition, _REGION: region or REGION, _ACCOUNT: account or ACCOUNT, _CLUSTER: cluster or "*"}
    actions: dict[tuple[str, str, tuple[Condition, ...]], dict[str, None]] = {}
    whys: dict[tuple[str, str, tuple[Condition, ...]], dict[str, None]] = {}
    for right in rights:
        at = (right.service, right.resource, right.conditions)
        actions.setdefault(at, {}).update(dict.fromkeys(f"{right.service}:{action}" for action in right.actions))
        whys.setdefault(at, {})[right.why] = None
    alike: dict[tuple[str, tuple[str, ...], tuple[Condition, ...]], list[str]] = {}
    for (service, resource, conditions), allowed in actions.items():
        alike.setdefault((service, tuple(sorted(allowed)), conditions), []).append(resource)
    statements, numbers = list[Statement](), dict[str, int]()
    for (service, allowed_here, conditions), found in sorted(alike.items()):
        number = numbers[service] = numbers.get(service, 0) + 1
        body: dict[str, Any] = {
            "Sid": f"{service.replace('-', ' ').title().replace(' ', '')}{number}",
            "Effect": "Allow",
            "Action": list(allowed_here),
            "Resource": _one_or_all([_filled(resource, names) for resource in sorted(found)]),
        }
        if conditions:
            body["Condition"] = _conditions(conditions, names)
        told = dict.fromkeys(why for resource in found for why in whys[service, resource, conditions] if why)
        statements.append(Statement(body, tuple(told)))
    return statements


def _region_of(right: Right) -> str | None:
    parts = right.resource.split(":")
    return parts[3] if len(parts) > 3 and parts[3] not in ("", _REGION) else None


def _conditions(conditions: Iterable[Condition], names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for operator, key, values in conditions:
        said = [_filled(value, names) for value in values]
        if key == VIA:
            said += [f"{value}.cn" for value in said if ".cn-" in value]  # hosts in China are named so; either is right
        found.setdefault(operator, {})[key] = _one_or_all(said)
    return found


def _one_or_all(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values


def _filled(text: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text
