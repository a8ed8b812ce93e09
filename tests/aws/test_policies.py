"""The gate of `test_iam` itself: it tells what is allowed, what is not, and what is allowed in vain."""

import json
from typing import Any

import pytest

from tests.aws.asking import Reader
from tests.aws.gate import Gate
from tests.aws.policies import WHO, Asked, Grant, Policy, matches
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


KEY = "arn:aws:kms:us-east-1:000000000000:key/1234"
BY_S3 = {"kms:ViaService": ["s3.us-east-1.amazonaws.com"], "kms:ResourceAliases": ["alias/k"]}
KMS = {"X-Amz-Server-Side-Encryption-AWS-KMS-Key-Id": "alias/k"}
USER = {"redshift-data:statement-owner-iam-userid": [WHO]}


def ours(service: str, name: str) -> str:
    return f"arn:aws:{service}:us-east-1:000000000000:{name}"


@pytest.mark.parametrize(
    ("method", "path", "headers", "found"),
    [
        ("GET", "/b/some%20key?x=y", {}, ["s3:GetObject b/some key"]),
        ("HEAD", "/b/k", {}, ["s3:GetObject b/k"]),
        ("GET", "/b?list-type=2&prefix=a%2Fb", {}, ["s3:ListBucket b"]),
        ("HEAD", "/b", {}, ["s3:ListBucket b"]),
        ("GET", "/b?uploads&prefix=a", {}, ["s3:ListBucketMultipartUploads b"]),
        ("PUT", "/b/k", {"If-None-Match": "*"}, ["s3:PutObject b/k"]),
        ("PUT", "/b/k", {"If-Match": "e"}, ["s3:PutObject b/k", "s3:GetObject b/k"]),
        ("PUT", "/b/k", {"x-amz-tagging": "a=b"}, ["s3:PutObject b/k", "s3:PutObjectTagging b/k"]),
        ("POST", "/b/k?uploads", {}, ["s3:PutObject b/k"]),
        ("PUT", "/b/k?partNumber=1&uploadId=u", {}, ["s3:PutObject b/k"]),
        ("POST", "/b/k?uploadId=u", {}, ["s3:PutObject b/k"]),
        ("DELETE", "/b/k?uploadId=u", {}, ["s3:AbortMultipartUpload b/k"]),
        ("DELETE", "/b/k", {}, ["s3:DeleteObject b/k"]),
        ("PATCH", "/b", {}, ["s3:PATCH /b: the gate does not know it"]),
    ],
)
def test_s3_is_asked_by_method_path_query_and_headers(
    method: str, path: str, headers: dict[str, str], found: list[str]
) -> None:
    asked = Reader().asked(Request("s3", method, path, b"", method=method, headers=headers))
    assert [f"{each.action} {each.resource.removeprefix('arn:aws:s3:::')}" for each in asked] == found


def test_what_s3_does_under_a_key_is_asked_of_the_key_too() -> None:
    reader = Reader({"1234": ["alias/k"]}, buckets={"by-default": "alias/k"})

    def asked(method: str, path: str, headers: dict[str, str] = {}) -> list[Asked]:  # noqa: B006
        return reader.asked(Request("s3", method, path, b"", method=method, headers=headers))[1:]

    make, read = Asked("kms:GenerateDataKey", KEY, BY_S3), Asked("kms:Decrypt", KEY, BY_S3)
    assert asked("GET", "/b/small") == []
    assert asked("PUT", "/b/small", KMS) == [make]
    assert asked("GET", "/b/small") == [read]
    assert asked("POST", "/b/large?uploads", KMS) == [make]
    assert asked("PUT", "/b/large?partNumber=1&uploadId=u") == [read]
    assert asked("POST", "/b/large?uploadId=u") == []
    assert asked("PUT", "/by-default/x") == [make]
    assert asked("GET", "/by-default/y") == [read]


@pytest.mark.parametrize(
    ("service", "action", "body", "found"),
    [
        ("dynamodb", "PutItem", {"TableName": "t"}, [("PutItem", ours("dynamodb", "table/t"))]),
        (
            "dynamodb",
            "BatchWriteItem",
            {"RequestItems": {ours("dynamodb", "table/t"): []}},
            [("BatchWriteItem", ours("dynamodb", "table/t"))],
        ),
        (
            "dynamodb",
            "TransactWriteItems",
            {"TransactItems": [{"Put": {"TableName": "a"}}, {"ConditionCheck": {"TableName": "b"}}]},
            [("PutItem", ours("dynamodb", "table/a")), ("ConditionCheckItem", ours("dynamodb", "table/b"))],
        ),
        ("logs", "PutLogEvents", {"logGroupName": "g", "logStreamName": "s"},
         [("PutLogEvents", ours("logs", "log-group:g:log-stream:s"))]),
        ("logs", "CreateLogStream", {"logGroupName": "g", "logStreamName": "s"},
         [("CreateLogStream", ours("logs", "log-group:g:log-stream:"))]),
        ("sqs", "GetQueueUrl", {"QueueName": "q", "QueueOwnerAWSAccountId": "1"},
         [("GetQueueUrl", "arn:aws:sqs:us-east-1:1:q")]),
        ("sqs", "SendMessageBatch", {"QueueUrl": "http://host/2/q"}, [("SendMessage", "arn:aws:sqs:us-east-1:2:q")]),
        ("events", "PutEvents", {"Entries": [{"EventBusName": "a"}, {"EventBusName": "a"}]},
         [("PutEvents", ours("events", "event-bus/a"))]),
        ("kinesis", "PutRecords", {"StreamName": "s"}, [("PutRecords", ours("kinesis", "stream/s"))]),
        ("firehose", "PutRecordBatch", {"DeliveryStreamName": "s"},
         [("PutRecordBatch", ours("firehose", "deliverystream/s"))]),
        ("nowhere", "Do", {}, [("Do", "/: the gate does not know it")]),
    ],
)  # fmt: skip
def test_json_protocols_are_read_as_their_services_do(
    service: str, action: str, body: dict[str, Any], found: list[tuple[str, str]]
) -> None:
    asked = Reader().asked(Request(service, action, "/", json.dumps(body).encode()))
    assert asked == [Asked(f"{service}:{name}", resource, {}) for name, resource in found]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (
            {"WorkgroupName": "g"},
            [("redshift-serverless:GetCredentials", ours("redshift-serverless", "workgroup/g-id"))],
        ),
        ({"ClusterIdentifier": "c"}, [("redshift:GetClusterCredentialsWithIAM", ours("redshift", "dbname:c/d"))]),
        (
            {"ClusterIdentifier": "c", "DbUser": "u"},
            [
                ("redshift:GetClusterCredentials", ours("redshift", "dbuser:c/u")),
                ("redshift:GetClusterCredentials", ours("redshift", "dbname:c/d")),
            ],
        ),
        ({"ClusterIdentifier": "c", "SecretArn": "arn:s"}, [("secretsmanager:GetSecretValue", "arn:s")]),
    ],
)
def test_a_statement_asks_for_credentials_too(body: dict[str, str], found: list[tuple[str, str]]) -> None:
    given = json.dumps({**body, "Database": "d"}).encode()
    made, *signs_in = Reader().asked(Request("redshift-data", "ExecuteStatement", "/", given))
    assert made.action == "redshift-data:ExecuteStatement"
    assert signs_in == [Asked(action, resource, {}) for action, resource in found]
    (then,) = Reader().asked(Request("redshift-data", "DescribeStatement", "/", b'{"Id": "1"}'))
    assert then == ("redshift-data:DescribeStatement", "*", USER)


def test_paths_name_functions_and_documents() -> None:
    reader = Reader()
    for path, action, resource in (
        ("/2015-03-31/functions/f/invocations", "InvokeFunction", "function:f"),
        ("/2015-03-31/functions/f%3Alive/configuration", "GetFunctionConfiguration", "function:f:live"),
        ("/2015-03-31/functions/f/invocations?Qualifier=2", "InvokeFunction", "function:f:2"),
    ):
        asked = reader.asked(Request("lambda", "Invoke", path, b"", method="POST"))
        assert asked == [Asked(f"lambda:{action}", ours("lambda", resource), {})]
    bulk = reader.asked(Request("es", "_bulk", "/_bulk?filter_path=x", b"", method="POST"))
    assert bulk == [Asked("es:ESHttpPost", ours("es", "domain/shop/_bulk"), {})]
    assert reader.asked(Request("", "_bulk", "/_bulk", b"", method="POST")) == []  # by a password: nobody's matter here


def test_what_an_answer_gave_tells_what_is_asked_next() -> None:
    reader = Reader({"1234": ["alias/k"]})
    context = {"EncryptionContext": {"flowkit-app": "a"}}
    asked = Request("kms", "GenerateDataKey", "/", json.dumps({"KeyId": "alias/k", **context}).encode(), status=200)
    keys = {"kms:EncryptionContext:flowkit-app": ["a"], "kms:ResourceAliases": ["alias/k"]}
    assert reader.asked(asked) == [Asked("kms:GenerateDataKey", KEY, keys)]
    asked.answer = json.dumps({"CiphertextBlob": "sealed", "KeyId": KEY}).encode()
    reader.answered(asked)
    again = Request("kms", "Decrypt", "/", json.dumps({"CiphertextBlob": "sealed", **context}).encode())
    assert reader.asked(again) == [Asked("kms:Decrypt", KEY, keys)]
    gave = Request(
        "kinesis", "GetShardIterator", "/", b'{"StreamName": "s"}', status=200, answer=b'{"ShardIterator": "i"}'
    )
    reader.answered(gave)
    read = Request("kinesis", "GetRecords", "/", b'{"ShardIterator": "i"}')
    assert reader.asked(read) == [Asked("kinesis:GetRecords", ours("kinesis", "stream/s"), {})]


def test_a_gate_tells_what_was_denied_and_what_was_allowed_in_vain() -> None:
    allowed = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::b/*", "arn:aws:s3:::c/*"]}
    gate = Gate({"Statement": [allowed]})
    assert gate.lets_through(Request("s3", "GET", "/b/k", b"", method="GET"))
    with pytest.raises(AssertionError, match=r"never asked for:\n  s3:GetObject on arn:aws:s3:::c/\*"):
        gate.check()
    assert not gate.lets_through(Request("s3", "PUT", "/b/k", b"", method="PUT"))
    with pytest.raises(AssertionError, match=r"not allowed:\n  s3:PutObject on arn:aws:s3:::b/k"):
        gate.check()
