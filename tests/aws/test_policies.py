"""The gate of `test_iam` itself: it tells what is allowed, what is not, and what is allowed in vain."""

import json
from typing import Any

import pytest

from tests.aws.policies import Asked, Grant, Policy, Reader, matches
from tests.aws.proxy import Request


def policy(**conditions: Any) -> Policy:
    return Policy(
        {
            "Statement": [
                {
                    "Effect": "Allow",
                    "Action": ["s3:GetObject", "s3:PutObject"],
                    "Resource": "arn:aws:s3:::b/app/*",
                    **conditions,
                }
            ]
        }
    )


def test_what_is_not_said_is_denied_and_what_is_not_asked_is_in_vain() -> None:
    gate = policy()
    assert gate.allows(Asked("s3:GetObject", "arn:aws:s3:::b/app/x", {}))
    assert not gate.allows(Asked("s3:GetObject", "arn:aws:s3:::b/other/x", {}))
    assert not gate.allows(Asked("s3:DeleteObject", "arn:aws:s3:::b/app/x", {}))
    assert gate.unused() == {Grant(0, "s3:PutObject", "arn:aws:s3:::b/app/*")}


def test_every_condition_has_to_hold() -> None:
    gate = policy(Condition={"StringLike": {"s3:prefix": ["a/", "b/*"]}, "ForAnyValue:StringEquals": {"k": "v"}})
    for prefix, key, allowed in (("a/", "v", True), ("b/c", "v", True), ("a/c", "v", False), ("a/", "w", False)):
        asked = Asked("s3:GetObject", "arn:aws:s3:::b/app/x", {"s3:prefix": [prefix], "k": [key, "other"]})
        assert gate.allows(asked) is allowed
    assert not gate.allows(Asked("s3:GetObject", "arn:aws:s3:::b/app/x", {}))


@pytest.mark.parametrize(
    ("pattern", "text", "same"),
    [
        ("a*c", "abbc", True),
        ("a?c", "abbc", False),
        ("a${*}c", "a*c", True),
        ("a${*}c", "abc", False),
        ("a.c", "abc", False),
    ],
)
def test_patterns_are_iams(pattern: str, text: str, same: bool) -> None:
    assert matches(pattern, text) is same


def test_requests_are_read_as_their_services_do() -> None:
    reader = Reader({"1234": ["alias/k"]})

    def asked(service: str, action: str, path: str = "/", **body: Any) -> Asked:
        return reader.asked(Request(service, action, path, json.dumps(body).encode()))

    assert asked("s3", "GET", "/b/some%20key?x=y")[:2] == ("s3:GetObject", "arn:aws:s3:::b/some key")
    listed = asked("s3", "GET", "/b?list-type=2&prefix=a%2Fb")
    assert listed == ("s3:ListBucket", "arn:aws:s3:::b", {"s3:prefix": ["a/b"]})
    by_alias = asked("kms", "GenerateDataKey", KeyId="alias/k", EncryptionContext={"flowkit-app": "a"})
    assert by_alias.resource == "arn:aws:kms:us-east-1:000000000000:key/1234"
    assert by_alias.keys == {"kms:EncryptionContext:flowkit-app": ["a"], "kms:ResourceAliases": ["alias/k"]}
    gave = Request(
        "kinesis", "GetShardIterator", "/", b'{"StreamName": "s"}', status=200, answer=b'{"ShardIterator": "i"}'
    )
    reader.answered(gave)
    assert (
        asked("kinesis", "GetRecords", ShardIterator="i").resource == "arn:aws:kinesis:us-east-1:000000000000:stream/s"
    )
