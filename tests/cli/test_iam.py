"""`flowkit iam`: what the policy says of each part, without any of Amazon's services."""

import json
import os
from typing import Any

import pytest

from flowkit.aws import Right, arn, key_right, partition_of, policy_of
from flowkit.sink import destination
from flowkit.sink.destinations import SERVICES
from flowkit.source import storage_rights
from tests.cli.place import APP, Place

BINDS = ("--bind", "reports=dynamodb://reports")


def statements(place: Place, *words: str) -> list[dict[str, Any]]:
    done = place.call("iam", "app.py", *words, "--account", "123456789012", "--region", "eu-west-1")
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)["Statement"]
    return found


def test_a_sink_alone_needs_its_table(place: Place) -> None:
    place.app()
    (only,) = statements(place, *BINDS)
    assert only == {
        "Sid": "Dynamodb1",
        "Effect": "Allow",
        "Action": ["dynamodb:DescribeTable", "dynamodb:PutItem"],  # of a type with fields, so that none is removed
        "Resource": "arn:aws:dynamodb:eu-west-1:123456789012:table/reports",
    }


def test_a_url_with_a_region_goes_before_the_option(place: Place) -> None:
    place.app()
    (only,) = statements(place, "--bind", "reports=firehose://out?region=us-east-2")
    assert only["Resource"] == "arn:aws:firehose:us-east-2:123456789012:deliverystream/out"


def test_streams_are_told_apart_by_what_is_done_with_them(place: Place) -> None:
    place.app()
    found = {
        statement["Resource"].rpartition("/")[2]: {action.partition(":")[2] for action in statement["Action"]}
        for statement in statements(place, *BINDS, "--bind", "dead-letters=dead.jsonl", "--broker", "kinesis://")
    }
    assert found["sales"] == {"ListShards", "GetShardIterator", "GetRecords"}
    assert found["big"] == {"ListShards", "DescribeStreamSummary", "PutRecords"}
    assert "UpdateItem" in found["flowkit-leases"]
    assert set(found) == {"sales", "big", "flowkit-leases", "reports"}  # `unread` is not: nobody reads it


def test_a_consumer_is_allowed_where_streams_are_pushed_and_nowhere_else(place: Place) -> None:
    place.app()
    words = (*BINDS, "--bind", "dead-letters=dead.jsonl", "--bind", "big=x.jsonl", "--broker")

    def found(broker: str) -> dict[str, set[str]]:
        rights: dict[str, set[str]] = {}
        for statement in statements(place, *words, broker):
            for resource in (
                [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
            ):
                if ":kinesis:" in resource:
                    name = resource.partition(":stream/")[2]
                    rights.setdefault(name, set()).update(a.partition(":")[2] for a in statement["Action"])
        return rights

    polled = {"ListShards", "GetShardIterator", "GetRecords"}
    assert found("kinesis://") == found("kinesis://?fan_out=no") == {"sales": polled}
    both = polled | {"DescribeStreamSummary", "RegisterStreamConsumer"}
    own = {"DescribeStreamConsumer", "SubscribeToShard"}
    group = next(iter(found("kinesis://?fan_out=yes").keys() - {"sales"})).split("/")[2].partition(":")[0]
    assert group.startswith("shop.")
    assert found("kinesis://?fan_out=yes") == {"sales": both, f"sales/consumer/{group}:*": own}
    other = group.replace("shop.", "prod.")
    assert found("kinesis://?fan_out=prod") == {"sales": both, f"sales/consumer/{other}:*": own}


@pytest.mark.parametrize(
    "region, partition",
    [("cn-north-1", "aws-cn"), ("us-gov-east-1", "aws-us-gov"), ("us-isob-east-1", "aws-iso-b"), ("us-east-1", "aws")],
)
def test_the_partition_is_that_of_the_region(place: Place, region: str, partition: str) -> None:
    place.app()
    broker = ("--broker", f"kinesis://{region}?frames=s3://states/app", "--bind", "dead-letters=dead.jsonl")
    for words in (("--region", region), ()):  # else as the broker's URL says, which goes before what is unsaid
        done = place.call("iam", "app.py", *broker, "--bind", "reports=x.jsonl", "--account", "1" * 12, *words)
        arns = [word for word in done.out.split('"') if word.startswith("arn:")]
        assert {arn.split(":")[1] for arn in arns} == {partition}
        assert f"arn:{partition}:s3:::states/app/frames/shop/*" in arns
        assert f"arn:{partition}:kinesis:{region}:111111111111:stream/sales" in arns
    told = place.call("iam", "app.py", *broker, "--bind", "reports=x.jsonl", "--partition", "aws-x").out
    assert "arn:aws-x:kinesis" in told
    assert f"arn:{partition}:" not in told


def test_in_china_a_service_that_uses_a_key_is_named_either_way() -> None:
    rights = storage_rights("s3://states?kms_key=alias/states&region=cn-north-1", "shop")
    (condition,) = [s["Condition"] for s in policy_of(rights, account="1")["Statement"] if s["Sid"] == "Kms1"]
    hosts = condition["StringEquals"]["kms:ViaService"]
    assert hosts == ["s3.cn-north-1.amazonaws.com", "s3.cn-north-1.amazonaws.com.cn"]


def test_frames_are_forgotten_only_where_there_are_checkpoints(place: Place) -> None:
    place.app()
    words = (*BINDS, "--bind", "dead-letters=dead.jsonl", "--broker", "kinesis://eu-west-1?frames=s3://states/app")
    for more, deleted in (((), False), (("--checkpoints", "checkpoints"), True)):
        (found,) = [s for s in statements(place, *words, *more) if "/app/frames/shop/*" in s["Resource"]]
        assert ("s3:DeleteObject" in found["Action"]) is deleted


def test_dead_letters_go_to_a_stream_unless_they_are_bound(place: Place) -> None:
    place.app()
    assert any("stream/dead-letters" in str(s) for s in statements(place, *BINDS, "--broker", "kinesis://"))


def test_a_state_key_is_for_this_app_only(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.app()
    monkeypatch.setenv("FLOWKIT_STORE_KMS_KEY", "arn:aws:kms:us-west-2:111122223333:key/1234")
    (kms,) = [s for s in statements(place, *BINDS) if s["Sid"] == "Kms1"]
    assert kms["Resource"] == "arn:aws:kms:us-west-2:111122223333:key/1234"
    assert kms["Action"] == ["kms:Decrypt", "kms:GenerateDataKey"]
    assert kms["Condition"] == {"StringEquals": {"kms:EncryptionContext:flowkit-app": "shop"}}


def test_what_nobody_has_said_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.app()
    for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    done = place.call("iam", "app.py", *BINDS)
    assert "arn:aws:dynamodb:REGION:ACCOUNT:table/reports" in done.out
    assert done.err == "to be put in: ACCOUNT by --account and REGION by --region\n"


def test_the_region_is_the_one_that_the_aws_tools_are_configured_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.app()
    for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable, raising=False)
    place.write("config", "[profile shop]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(place.path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "shop")
    assert "arn:aws:dynamodb:eu-north-1:ACCOUNT:table/reports" in place.call("iam", "app.py", *BINDS).out
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "arn:aws:dynamodb:REGION:ACCOUNT:table/reports" in place.call("iam", "app.py", *BINDS).out


KEY = "arn:aws-cn:kms:cn-north-1:123456789012:key/1"


@pytest.mark.parametrize(
    ("words", "partition"),
    [
        (("--region", "eu-west-1"), "aws"),
        (("--region", "cn-northwest-1"), "aws-cn"),
        (("--region", "us-gov-west-1"), "aws-us-gov"),
        (("--region", "cn-north-1", "--partition", "aws-us-gov"), "aws-us-gov"),
        (("--bind", "big=kinesis://big?region=us-gov-east-1"), "aws-us-gov"),
    ],
)
def test_the_partition_follows_from_the_region(
    place: Place, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], partition: str
) -> None:
    for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable, raising=False)
    place.app()
    found = json.loads(place.call("iam", "app.py", *BINDS, "--checkpoints", "s3://states/x", *words).out)["Statement"]
    arns = [arn for statement in found for arn in _all(statement["Resource"])]
    assert {arn.split(":")[1] for arn in arns} == {partition}


def _all(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_partitions_are_amazons() -> None:
    """Those that botocore knows, by the regions that it knows of each."""
    from botocore.session import Session

    session = Session()
    regions = [
        (region, name)
        for name in session.get_available_partitions()
        for region in session.get_available_regions("s3", name)
    ]
    assert len(regions) > 30
    assert {region: partition_of(region) for region, _ in regions} == dict(regions)


def test_what_each_statement_is_for_stands_beside_the_policy(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.app()
    monkeypatch.setenv("FLOWKIT_LOGS", "logs://shop/{host}-{pid}?create=yes")
    words = ("--checkpoints", "s3://states/x", "--explain", "--region", "eu-west-1", "--account", "123456789012")
    done = place.call("iam", "app.py", *BINDS, *words, "--broker", "kinesis://?frames=s3://states/f")
    json.loads(done.out)
    told = done.err.splitlines()
    at = told.index("S31: frames: what was committed since the last checkpoint; checkpoints")
    assert told[at + 1] == "    s3: DeleteObject, GetObject, PutObject"
    assert told[at + 2 : at + 4] == [
        "    on arn:aws:s3:::states/f/frames/shop/*",
        "    on arn:aws:s3:::states/x/shop/*",
    ]
    assert "    if s3:prefix is like x/ or x/shop/*" in told
    assert "Dynamodb2: reports leads there" in told
    assert "    on arn:aws:logs:eu-west-1:123456789012:log-group:shop:log-stream:*-*" in told
    assert "Logs2: log lines (FLOWKIT_LOGS)" in told
    sids = [statement["Sid"] for statement in json.loads(done.out)["Statement"]]
    assert [line.partition(":")[0] for line in told if not line.startswith(" ")] == sids


def test_a_policy_that_is_too_large_for_iam_is_told(place: Place) -> None:
    passes = """
s{n} = app.sink("s{n}", Sale)
@app.each(sales, sinks=[s{n}])
def f{n}(sale: Sale) -> Sale:
    return sale
"""
    place.app(APP + "\n" + "".join(passes.format(n=n) for n in range(100)))
    for count, told in ((10, ""), (60, "though not for an inline one of a role (10,240): "), (100, "policy: ")):
        urls = [f"firehose://{n:064}" if n < count else f"x{n}.jsonl" for n in range(100)]
        binds = [word for n, url in enumerate(urls) for word in ("--bind", f"s{n}={url}")]
        done = place.call("iam", "app.py", *BINDS, *binds, "--account", "123456789012", "--region", "eu-west-1")
        assert done.code == 0, done.err
        size = len(json.dumps(json.loads(done.out), separators=(",", ":")))
        assert (f"{told}{size:,} characters, and IAM takes 6,144" in done.err) is (size > 6_144) is (count > 10), size


def test_a_bounded_run_is_allowed_to_read_its_inputs_and_to_write_its_outputs(place: Place) -> None:
    place.app()
    words = ("--input", "sales=s3://archive/sa*les", "--output", "reports=dynamodb://reports")
    found = {s["Resource"]: s for s in statements(place, *words, "--output", "big=big.jsonl")}
    assert set(found) == {
        "arn:aws:s3:::archive/sa${*}les*",
        "arn:aws:s3:::archive",
        "arn:aws:dynamodb:eu-west-1:123456789012:table/reports",
    }
    assert found["arn:aws:s3:::archive"]["Condition"] == {"StringLike": {"s3:prefix": "sa${*}les"}}
    assert found["arn:aws:s3:::archive/sa${*}les*"]["Action"] == ["s3:GetObject"]
    done = place.call("iam", "app.py", *words, "--broker", "kinesis://", *BINDS)
    assert (done.code, done.out) == (2, "")
    assert "--broker, --bind: of a worker; --input and --output are of flowkit run" in done.err


REDSHIFT = "redshift-data://shop/dev/public.out?stage=s3://stage/in&role=arn:aws:iam::123456789012:role/r"


@pytest.mark.parametrize("words", [("--bind",), ("--input", "sales=x.jsonl", "--output")])
def test_the_role_that_redshift_copies_by_is_another_one(place: Place, words: tuple[str, ...]) -> None:
    place.app()
    found = statements(place, *words, f"reports={REDSHIFT}", "--copy-role")
    assert [(s["Action"], s["Resource"], s.get("Condition")) for s in found] == [
        (["s3:GetObject"], "arn:aws:s3:::stage/in/*", None),
        (["s3:ListBucket"], "arn:aws:s3:::stage", {"StringLike": {"s3:prefix": "in/*"}}),
    ]
    done = place.call("iam", "app.py", *BINDS, "--copy-role")
    assert done.err == "nothing is staged for Redshift: the role needs no rights\n"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (REDSHIFT, "for any Redshift workgroup of the account, since the URL does not tell which"),
        ("opensearch://search.example.com/sales", "for any OpenSearch domain of the account, since"),
        ("opensearch://x.aoss.amazonaws.com/sales?service=aoss", "for any OpenSearch Serverless collection of the"),
        ("opensearch://search-shop-abcdefghijklmnopqrstuvwxyz.eu-west-1.es.amazonaws.com/sales", ""),
        ("opensearch://search.example.com/sales?auth=none", "nothing of Amazon's is used there"),
    ],
)
def test_names_that_no_url_tells_are_to_be_put_in(place: Place, url: str, told: str) -> None:
    place.app()
    words = ("--account", "123456789012", "--region", "eu-west-1")
    done = place.call("iam", "app.py", "--bind", f"reports={url}", *words)
    assert done.code == 0
    assert (told in done.err) if told else (done.err == "")


# --- MSK

MSK = "kafka://boot.c1.kafka-serverless.eu-west-1.amazonaws.com:9098?security=sasl_tls&sasl=msk-iam&region=eu-west-1"
CLUSTER = "arn:aws:kafka:eu-west-1:123456789012:cluster/shop/0a1b-2c"


def kafka_of(found: list[dict[str, Any]]) -> dict[str, set[str]]:
    return {
        arn.removeprefix("arn:aws:kafka:eu-west-1:123456789012:"): {a.partition(":")[2] for a in statement["Action"]}
        for statement in found
        for arn in _all(statement["Resource"])
        if statement["Action"][0].startswith("kafka-cluster:")
    }


def test_topics_group_and_transactions_of_an_msk_cluster(place: Place) -> None:
    place.app()
    words = (*BINDS, "--broker", MSK, "--checkpoints", "s3://states/x")
    read = {"CreateTopic", "DescribeTopic", "ReadData"}
    wanted = {
        "cluster": {"Connect"},
        "topic/sales": read,
        "topic/big": {"CreateTopic", "DescribeTopic", "WriteData"},
        "topic/dead-letters": {"CreateTopic", "DescribeTopic", "WriteData"},
        "topic/shop-seen-changelog": {*read, "WriteData", "DeleteTopic"},
        "group/shop": {"AlterGroup", "DescribeGroup"},
        "transactional-id/shop/seen/*": {"AlterTransactionalId", "DescribeTransactionalId"},
    }
    exact = kafka_of(statements(place, *words, "--msk-cluster", CLUSTER))
    assert {name.replace("/shop/0a1b-2c", "", 1): actions for name, actions in exact.items()} == wanted
    any_one = kafka_of(statements(place, *words))
    assert {name.replace("/*", "", 1): actions for name, actions in any_one.items()} == wanted
    assert "for any MSK cluster of the account: name yours by --msk-cluster" in place.call("iam", "app.py", *words).err
    done = place.call("iam", "app.py", *words, "--msk-cluster", "shop")
    assert "--msk-cluster shop: needs the ARN that `aws kafka list-clusters-v2` shows" in done.err


def test_at_least_once_there_are_no_transactions(place: Place) -> None:
    place.app(APP.replace('App("shop")', 'App("shop", guarantee="at least once")'))
    found = kafka_of(statements(place, *BINDS, "--broker", MSK, "--msk-cluster", CLUSTER))
    assert found["cluster/shop/0a1b-2c"] == {"Connect", "WriteDataIdempotently"}
    assert not [name for name in found if name.startswith("transactional-id")]
    assert "DeleteTopic" not in found["topic/shop/0a1b-2c/shop-seen-changelog"]  # nothing is forgotten


def test_topics_by_a_pattern_are_allowed_by_what_their_names_begin_with(place: Place) -> None:
    place.app(APP.replace('app.topic("sales", Sale,', 'app.topic("sales", Sale, pattern="sales-[a-z]+",'))
    found = kafka_of(statements(place, *BINDS, "--broker", MSK, "--msk-cluster", CLUSTER))
    assert found["topic/shop/0a1b-2c/sales-*"] == {"DescribeTopic", "ReadData"}
    assert "topic/shop/0a1b-2c/sales" not in found


def test_checkpoints_and_inputs_on_an_msk_cluster(place: Place) -> None:
    place.app()
    at, _, query = MSK.partition("?")
    words = ("--checkpoints", f"{at}/states?{query}", "--from", f"{at}/old?{query}")
    found = kafka_of(statements(place, *BINDS, *words, "--msk-cluster", CLUSTER))
    read = {"DescribeTopic", "ReadData", "DescribeTopicDynamicConfiguration"}
    assert found == {
        "cluster/shop/0a1b-2c": {"Connect", "WriteDataIdempotently"},
        "topic/shop/0a1b-2c/states": {*read, "CreateTopic", "WriteData"},
        "topic/shop/0a1b-2c/old": read,
        "transactional-id/shop/0a1b-2c/flowkit-checkpoints/states/*": {
            "AlterTransactionalId",
            "DescribeTransactionalId",
        },
    }
    found = kafka_of(statements(place, "--input", f"sales={at}/sales?{query}", "--msk-cluster", CLUSTER))
    assert found == {
        "cluster/shop/0a1b-2c": {"Connect"},
        "topic/shop/0a1b-2c/sales": {"DescribeTopic", "ReadData"},
    }
    plain = place.call("iam", "app.py", *BINDS, "--broker", "kafka://host:9092")
    assert "kafka-cluster" not in plain.out


def test_files_need_nothing(place: Place) -> None:
    place.app()
    done = place.call("iam", "app.py", "--bind", "reports=reports.jsonl", "--broker", "embedded://topics")
    assert json.loads(done.out)["Statement"] == []
    assert done.err == "nothing of Amazon's is used there: the role needs no rights\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "sink 'reports' leads nowhere: bind it with --bind reports=FILE, or a URL"),
        (("--bind", "reports=gopher://x"), "unknown scheme 'gopher'"),
        ((*BINDS, "--account", "12"), "--account 12: needs the number of an account, 12 digits"),
        ((*BINDS, "--checkpoints", "s3://B_"), "'B_' is no name of a bucket"),
    ],
)
def test_what_is_wrong_is_told(place: Place, words: tuple[str, ...], problem: str) -> None:
    place.app()
    done = place.call("iam", "app.py", *words)
    assert (done.code, done.out) == (2, "")
    assert problem in done.err


def test_buckets_are_cut_down_to_what_is_done_below_a_prefix() -> None:
    url = "s3://states/a*b?region=eu-west-1&kms_key=alias/states"
    keep = policy_of(storage_rights(url, "shop"), account="1")["Statement"]
    assert [(s["Action"], s["Resource"]) for s in keep[1:]] == [
        (["s3:DeleteObject", "s3:GetObject", "s3:PutObject"], "arn:aws:s3:::states/a${*}b/shop/*"),
        (["s3:ListBucket"], "arn:aws:s3:::states"),
    ]
    assert keep[2]["Condition"] == {"StringLike": {"s3:prefix": ["a${*}b/", "a${*}b/shop/*"]}}
    assert keep[0]["Condition"] == {
        "StringEquals": {"kms:ViaService": "s3.eu-west-1.amazonaws.com"},
        "ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/states"},
    }
    whole = policy_of(storage_rights("s3://states", use="read"))["Statement"]
    assert [(s["Action"], s["Resource"], s.get("Condition")) for s in whole] == [
        (["s3:GetObject"], "arn:aws:s3:::states/*", None),
        (["s3:ListBucket"], "arn:aws:s3:::states", None),
    ]
    assert storage_rights("states") == ()


def test_an_arn_is_taken_as_it_is() -> None:
    given = "arn:aws:kinesis:eu-west-1:111122223333:stream/orders"
    assert arn("kinesis", f"stream/{given}") == given
    alias = "arn:aws:kms:eu-west-1:111122223333:alias/states"
    assert key_right(alias, ("Decrypt",)).resource == "arn:aws:kms:eu-west-1:111122223333:key/*"


def test_one_statement_says_what_may_be_done_with_several_things() -> None:
    rights = [Right("sqs", ("SendMessage",), arn("sqs", name)) for name in ("b", "a", "b")]
    (only,) = policy_of(rights, account="1", region="r")["Statement"]
    assert only["Resource"] == ["arn:aws:sqs:r:1:a", "arn:aws:sqs:r:1:b"]


@pytest.mark.parametrize("scheme", SERVICES)
def test_every_destination_tells_its_rights(scheme: str) -> None:
    places = {
        "kinesis-internal": "kinesis-internal://s",
        "opensearch": "opensearch://search-shop-abcdefghijklmnopqrstuvwxyz.eu-west-1.es.amazonaws.com/orders?auth=sigv4",
        "redshift": "redshift://shop.example.com/dev/public.orders?stage=s3://stage/in&role=arn:aws:iam::1:role/r",
        "redshift-data": "redshift-data://shop/dev/public.orders?stage=s3://stage/in&role=arn:aws:iam::1:role/r",
        "s3": "s3://bucket/prefix",
        "sns": "sns://arn:aws:sns:eu-west-1:123456789012:alerts",
    }
    shape = places.get(scheme, SERVICES[scheme][1].partition("?")[0])
    rights = destination(shape, ("key",)).rights()
    assert rights, f"{shape} needs no right at all?"
    for service, actions, resource, _, _ in rights:
        assert actions
        assert resource == "*" or resource.startswith("arn:"), resource
        assert service.islower()


@pytest.mark.parametrize(
    ("options", "fields", "actions"),
    [
        ("", None, {"DescribeTable", "PutItem", "DeleteItem"}),
        ("?tombstone=mark", None, {"DescribeTable", "PutItem"}),
        ("?write=batch", None, {"DescribeTable", "BatchWriteItem"}),
        ("?ttl=until&ttl_after=1h", ("key",), {"DescribeTable", "DescribeTimeToLive", "PutItem"}),
    ],
)
def test_a_tables_rights_follow_its_options(options: str, fields: tuple[str, ...] | None, actions: set[str]) -> None:
    (right,) = destination(f"dynamodb://items{options}", fields).rights()
    assert set(right.actions) == actions


def test_savepoints_are_written_and_not_deleted_and_begun_with_by_reading(place: Place) -> None:
    place.app()
    places = ("--from", "s3://states/old", "--savepoints", "s3://states/new")
    found = {s["Resource"]: s["Action"] for s in statements(place, *BINDS, *places) if "Object" in str(s["Action"])}
    assert found == {
        "arn:aws:s3:::states/old/*": ["s3:GetObject"],
        "arn:aws:s3:::states/new/*": ["s3:GetObject", "s3:PutObject"],
    }
