"""Policies, and which of their statements allow a request that the proxy has seen: what IAM would do, for our actions.

A request is one action on one resource under some keys. Amazon's own names of these are in the Service Authorization
Reference; for JSON protocols the action is the operation, for S3 it follows from method, path and query.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.aws.proxy import Request

ACCOUNT, AREA = "000000000000", "us-east-1"


class Asked(NamedTuple):
    """What a request asks for. `keys` are those of conditions."""

    action: str
    resource: str
    keys: dict[str, list[str]]


class Reader:
    """Reads requests in order: which stream an iterator is of stands in the answer that gave it."""

    def __init__(self, aliases: Mapping[str, list[str]] | None = None) -> None:
        self.streams: dict[str, str] = {}
        self.aliases = aliases or {}
        """By KMS key id."""
        self.sealed: dict[str, str] = {}
        """By encrypted data key: the KMS key's id."""

    def asked(self, request: Request) -> Asked:
        """What it asks for."""
        if request.service == "s3":
            return _of_s3(request)
        return Asked(f"{request.service}:{request.action}", *getattr(self, f"_{request.service}")(request))

    def answered(self, request: Request) -> None:
        """Remember what its answer gave."""
        if request.status != 200 or request.service not in ("kinesis", "kms"):
            return
        answer = json.loads(request.answer or b"{}")
        if request.service == "kms":
            if request.action == "GenerateDataKey":
                self.sealed[answer["CiphertextBlob"]] = answer["KeyId"].rpartition("/")[2]
            return
        for name in ("ShardIterator", "NextShardIterator"):
            if answer.get(name):
                self.streams[answer[name]] = self._kinesis(request)[0]

    def _kinesis(self, request: Request) -> tuple[str, dict[str, list[str]]]:
        body = request.json
        if "ShardIterator" in body:
            return self.streams[body["ShardIterator"]], {}
        if "ConsumerARN" in body:
            return body["ConsumerARN"], {}
        if request.action == "DescribeStreamConsumer":  # when it was registered is in its ARN
            return f"{body['StreamARN']}/consumer/{body['ConsumerName']}:1", {}
        return body.get("StreamARN") or _arn("kinesis", f"stream/{body['StreamName']}"), {}

    def _firehose(self, request: Request) -> tuple[str, dict[str, list[str]]]:
        return _arn("firehose", f"deliverystream/{request.json['DeliveryStreamName']}"), {}

    def _dynamodb(self, request: Request) -> tuple[str, dict[str, list[str]]]:
        body = request.json
        (table,) = [body["TableName"]] if "TableName" in body else body["RequestItems"]
        return _arn("dynamodb", f"table/{table}"), {}

    def _kms(self, request: Request) -> tuple[str, dict[str, list[str]]]:
        body = request.json
        key = body.get("KeyId") or self.sealed[body["CiphertextBlob"]]
        by_alias = {alias: id_ for id_, names in self.aliases.items() for alias in names}
        key = by_alias.get(key, key.rpartition("/")[2])
        keys = {f"kms:EncryptionContext:{name}": [value] for name, value in body["EncryptionContext"].items()}
        return _arn("kms", f"key/{key}"), {**keys, "kms:ResourceAliases": list(self.aliases.get(key, ()))}


def _of_s3(request: Request) -> Asked:
    parts = urlsplit(request.path)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = parse_qs(parts.query, keep_blank_values=True)
    if not key:
        assert request.action == "GET"
        assert "list-type" in query, request.path
        return Asked("s3:ListBucket", f"arn:aws:s3:::{bucket}", {"s3:prefix": query.get("prefix", [])})
    action = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject"}[request.action]
    return Asked(f"s3:{action}", f"arn:aws:s3:::{bucket}/{key}", {})


def _arn(service: str, name: str) -> str:
    return f"arn:aws:{service}:{AREA}:{ACCOUNT}:{name}"


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
        found = [
            Grant(number, action, resource)
            for number, statement in enumerate(self.statements)
            for action in _all(statement["Action"])
            for resource in _all(statement["Resource"])
            if action == asked.action
            and matches(resource, asked.resource)
            and _holds(statement.get("Condition", {}), asked.keys)
        ]
        self.used |= set(found)
        return bool(found)

    def unused(self) -> set[Grant]:
        """What was allowed in vain."""
        return {
            Grant(number, action, resource)
            for number, statement in enumerate(self.statements)
            for action in _all(statement["Action"])
            for resource in _all(statement["Resource"])
        } - self.used


def _holds(conditions: Mapping[str, Mapping[str, Any]], keys: Mapping[str, list[str]]) -> bool:
    for operator, wanted in conditions.items():
        test = {"StringLike": matches, "StringEquals": str.__eq__}[operator.removeprefix("ForAnyValue:")]
        for key, patterns in wanted.items():
            if not any(test(pattern, value) for pattern in _all(patterns) for value in keys.get(key, ())):
                return False
    return True


def matches(pattern: str, text: str) -> bool:
    """As IAM compares: `*` is anything, `?` a letter, `${*}` a star itself."""
    parts = re.split(r"(\$\{[*?$]\}|[*?])", pattern)
    regex = "".join({"*": ".*", "?": "."}.get(p, re.escape(p[2] if p.startswith("${") else p)) for p in parts)
    return re.fullmatch(regex, text, re.DOTALL) is not None


def _all(value: Any) -> Iterable[str]:
    return [value] if isinstance(value, str) else value
