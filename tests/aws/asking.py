"""What a request asks of IAM, as the Service Authorization Reference and the services' own pages have it.

For JSON protocols the action is the operation, but for batches, which ask for what they are made of; for S3, Lambda and
OpenSearch it follows from method, path and query. Some requests ask for more than one thing:

S3               `If-Match` on a write also asks for s3:GetObject; a write under a KMS key for kms:GenerateDataKey, and
                 reading that object, or adding a part to it, for kms:Decrypt, both by way of S3
Redshift's API   a statement also asks for credentials, or for the secret
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.aws.policies import ACCOUNT, AREA, WHO, Asked
from tests.aws.proxy import Request

Keys = dict[str, list[str]]
PREFIXES = {"monitoring": "cloudwatch"}
"""Of services whose signature has another name than their actions."""
SAME = {"SendMessageBatch": "SendMessage", "PublishBatch": "Publish", "Invoke": "InvokeFunction"}
HTTP = {"GET": "ESHttpGet", "HEAD": "ESHttpHead", "POST": "ESHttpPost", "PUT": "ESHttpPut", "DELETE": "ESHttpDelete"}


class Reader:
    """Reads requests in order: which stream an iterator is of, say, stands in the answer that gave it."""

    def __init__(
        self, aliases: Mapping[str, list[str]] | None = None, *, buckets: Mapping[str, str] | None = None
    ) -> None:
        self.streams: dict[str, str] = {}
        self.aliases = dict(aliases or {})
        """By KMS key id; others are learnt from answers."""
        self.buckets = dict(buckets or {})
        """By bucket: the KMS key that it encrypts by where a request names none."""
        self.sealed: dict[str, str] = {}
        """By encrypted data key: the KMS key's id."""
        self.objects: dict[str, str] = {}
        """By BUCKET/KEY of what was written: the KMS key's id."""
        self._area = AREA
        """Of the request that is read."""

    def asked(self, request: Request) -> list[Asked]:
        """What it asks for: all of it has to be allowed. Nothing for what nobody has signed."""
        service = request.service
        if not service:
            return []
        scope = request.headers.get("Authorization", "").partition("Credential=")[2].split("/")
        self._area = scope[2] if len(scope) > 2 else AREA
        try:
            if service == "s3":
                return list(self._s3(request))
            found: Any = getattr(self, f"_{service.replace('-', '_')}")(request)
            if isinstance(found, list):
                return found
            action = f"{PREFIXES.get(service, service)}:{SAME.get(request.action, request.action)}"
            return [Asked(action, found, {})] if isinstance(found, str) else [Asked(action, *found)]
        except (AttributeError, KeyError):
            return [Asked(f"{service}:{request.action}", f"{request.path}: the gate does not know it", {})]

    def answered(self, request: Request) -> None:
        """Remember what its answer gave."""
        if request.status != 200 or request.service not in ("kinesis", "kms"):
            return
        answer = json.loads(request.answer or b"{}")
        if request.service == "kms":
            if request.action == "GenerateDataKey" and "KeyId" in answer:
                key = self.sealed[answer["CiphertextBlob"]] = answer["KeyId"].rpartition("/")[2]
                if "alias/" in (asked := request.json["KeyId"]):
                    self.aliases.setdefault(key, ["alias/" + asked.rpartition("alias/")[2]])
            return
        for name in ("ShardIterator", "NextShardIterator"):
            if answer.get(name):
                self.streams[answer[name]] = self._kinesis(request)

    # JSON protocols: the resource, or it and keys, or all that is asked for

    def _kinesis(self, request: Request) -> str:
        body = request.json
        if "ShardIterator" in body:
            return self.streams[body["ShardIterator"]]
        if "ConsumerARN" in body:
            return str(body["ConsumerARN"])
        if request.action == "DescribeStreamConsumer":  # when it was registered is in its ARN
            return f"{body['StreamARN']}/consumer/{body['ConsumerName']}:1"
        return body.get("StreamARN") or self._arn("kinesis", f"stream/{body['StreamName']}")

    def _firehose(self, request: Request) -> str:
        return self._arn("firehose", f"deliverystream/{request.json['DeliveryStreamName']}")

    def _dynamodb(self, request: Request) -> str | list[Asked]:
        body = request.json
        if request.action == "TransactWriteItems":
            names = {"Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem"}
            made = [
                (names.get(kind, "ConditionCheckItem"), op)
                for each in body["TransactItems"]
                for kind, op in each.items()
            ]
            return [
                Asked(f"dynamodb:{name}", self._arn("dynamodb", f"table/{op['TableName']}"), {}) for name, op in made
            ]
        (table,) = [body["TableName"]] if "TableName" in body else body["RequestItems"]
        return table if table.startswith("arn:") else self._arn("dynamodb", f"table/{table}")

    def _monitoring(self, request: Request) -> tuple[str, Keys]:
        return "*", {"cloudwatch:namespace": [request.json["Namespace"]]}

    def _logs(self, request: Request) -> str:
        body = request.json
        stream = body["logStreamName"] if request.action == "PutLogEvents" else ""
        return self._arn("logs", f"log-group:{body['logGroupName']}:log-stream:{stream}")

    def _events(self, request: Request) -> str | list[Asked]:
        if request.action != "PutEvents":
            return self._arn("events", f"event-bus/{request.json['Name']}")
        names = {entry["EventBusName"] for entry in request.json["Entries"]}
        return [Asked("events:PutEvents", self._arn("events", f"event-bus/{name}"), {}) for name in sorted(names)]

    def _sqs(self, request: Request) -> str:
        body = request.json
        if request.action == "GetQueueUrl":
            return self._arn("sqs", body["QueueName"], body.get("QueueOwnerAWSAccountId"))
        owner, name = body["QueueUrl"].split("/")[-2:]
        return self._arn("sqs", name, owner)

    def _sns(self, request: Request) -> str:
        return parse_qs(request.body.decode())["TopicArn"][0]

    def _kms(self, request: Request) -> tuple[str, Keys]:
        body = request.json
        key = body.get("KeyId") or self.sealed[body["CiphertextBlob"]]
        return self._key(key, {f"kms:EncryptionContext:{n}": [value] for n, value in body["EncryptionContext"].items()})

    def _key(self, key: str, keys: Keys) -> tuple[str, Keys]:
        by_alias = {alias: id_ for id_, names in self.aliases.items() for alias in names}
        _, is_alias, alias = key.rpartition("alias/")
        if is_alias:
            id_, names = by_alias.get(f"alias/{alias}", "not-known-yet"), [f"alias/{alias}"]
        else:
            id_ = key.rpartition("/")[2]
            names = self.aliases.get(id_, [])
        return self._arn("kms", f"key/{id_}"), {**keys, "kms:ResourceAliases": list(names)}

    def _redshift_data(self, request: Request) -> list[Asked]:
        body, action = request.json, f"redshift-data:{request.action}"
        if request.action not in ("ExecuteStatement", "BatchExecuteStatement"):
            return [Asked(action, "*", {"redshift-data:statement-owner-iam-userid": [WHO]})]
        group, cluster, database = body.get("WorkgroupName"), body.get("ClusterIdentifier"), body["Database"]
        place = self._arn("redshift-serverless", f"workgroup/{group}-id")
        if cluster:
            place = self._arn("redshift", f"cluster:{cluster}")
        asked = [Asked(action, place, {})]
        if "SecretArn" in body:
            return [*asked, Asked("secretsmanager:GetSecretValue", body["SecretArn"], {})]
        if not cluster:
            return [*asked, Asked("redshift-serverless:GetCredentials", place, {})]
        names = self._arn("redshift", f"dbname:{cluster}/{database}")
        if "DbUser" not in body:
            return [*asked, Asked("redshift:GetClusterCredentialsWithIAM", names, {})]
        users = self._arn("redshift", f"dbuser:{cluster}/{body['DbUser']}")
        return [*asked, *(Asked("redshift:GetClusterCredentials", each, {}) for each in (users, names))]

    # Protocols of paths

    def _lambda(self, request: Request) -> list[Asked]:
        parts = urlsplit(request.path)
        _, _, name, what = parts.path.strip("/").split("/")
        action = {"invocations": "InvokeFunction", "configuration": "GetFunctionConfiguration"}[what]
        name = unquote(name)
        function = name if name.startswith("arn:") else self._arn("lambda", f"function:{name}")
        qualifier = parse_qs(parts.query).get("Qualifier", [])
        return [Asked(f"lambda:{action}", ":".join([function, *qualifier]), {})]

    def _es(self, request: Request) -> list[Asked]:
        path = urlsplit(request.path).path.lstrip("/")
        return [Asked(f"es:{HTTP[request.method]}", self._arn("es", f"domain/shop/{path}"), {})]

    def _aoss(self, request: Request) -> list[Asked]:
        return [Asked("aoss:APIAccessAll", self._arn("aoss", "collection/shop"), {})]

    def _s3(self, request: Request) -> Iterator[Asked]:
        parts = urlsplit(request.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = parse_qs(parts.query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in request.headers.items()}
        if not key:
            yield _of_bucket(request.method, f"arn:aws:s3:::{bucket}", query)
            return
        at, object_ = f"{bucket}/{key}", f"arn:aws:s3:::{bucket}/{key}"
        writes = request.method in ("PUT", "POST")
        if writes:
            action = "PutObject"
        elif request.method == "DELETE":
            action = "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
        else:
            action = "ListMultipartUploadParts" if "uploadId" in query else "GetObject"
        yield Asked(f"s3:{action}", object_, {})
        if writes and "if-match" in headers:
            yield Asked("s3:GetObject", object_, {})
        for header, more in (("x-amz-tagging", "PutObjectTagging"), ("x-amz-acl", "PutObjectAcl")):
            if header in headers:
                yield Asked(f"s3:{more}", object_, {})
        if "uploadId" in query:  # which says no more what it is encrypted by
            if "partNumber" in query and at in self.objects:
                yield self._by_s3("Decrypt", self.objects[at])
        elif writes:
            sealed_by = headers.get("x-amz-server-side-encryption-aws-kms-key-id") or self.buckets.get(bucket)
            if sealed_by:
                self.objects[at] = sealed_by
                yield self._by_s3("GenerateDataKey", sealed_by)
        elif action == "GetObject":
            sealed_by = self.objects.get(at) or self.buckets.get(bucket)
            if sealed_by:
                yield self._by_s3("Decrypt", sealed_by)

    def _arn(self, service: str, name: str, account: str | None = None) -> str:
        return name if name.startswith("arn:") else f"arn:aws:{service}:{self._area}:{account or ACCOUNT}:{name}"

    def _by_s3(self, action: str, key: str) -> Asked:
        return Asked(f"kms:{action}", *self._key(key, {"kms:ViaService": [f"s3.{self._area}.amazonaws.com"]}))


def _of_bucket(method: str, bucket: str, query: Mapping[str, list[str]]) -> Asked:
    if method == "GET" and "uploads" in query:
        return Asked("s3:ListBucketMultipartUploads", bucket, {})
    if method == "GET" and "list-type" in query:
        return Asked("s3:ListBucket", bucket, {"s3:prefix": query.get("prefix", [])})
    return Asked({"HEAD": "s3:ListBucket", "PUT": "s3:CreateBucket"}[method], bucket, {})  # KeyError: not ours
