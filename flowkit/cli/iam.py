"""`flowkit iam`: the IAM policy that an app needs where it runs, and nothing more."""

import json as json_
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowkit.cli.arguments import Module, OptionalBroker, pairs
from flowkit.cli.load import load_app
from flowkit.cli.outcome import EXIT_CODES, OK, out, say
from flowkit.errors import ConfigError

if TYPE_CHECKING:
    from flowkit.aws import Right, Statement

HELP = """Print the IAM policy (JSON) that the role of an app's workers needs: what is called there, and nothing else.

It follows from the app's flow and from where its topics, sinks and state are. Give what the worker is given: --broker,
--bind, --checkpoints, and its environment (FLOWKIT_STORE_KMS_KEY, FLOWKIT_S3_KMS_KEY, FLOWKIT_LOGS); or, for flowkit
run, its --input and --output. Then make a policy of it and attach that to the role that the workers run under (task
role, instance profile, service account). Nothing is asked: neither Amazon's services nor credentials.

The policy is on standard output alone; what there is to say about it stands on standard error, with --explain also what
each statement is for. Without --account the word ACCOUNT stands in ARNs, and REGION where neither a URL nor --region
nor the configuration of the AWS tools names one: put yours in their place. The partition (aws, aws-cn, aws-us-gov)
follows from the region.

\b
What to know about it:
  a lease table, topics, and streams that group_by sends through are made by
  the first worker: once they are there, CreateTable, CreateStream and
  CreateTopic may go
  streams, tables, queues and buckets that are encrypted under a key of your
  own need rights on that key too, unless a URL names it (kms_key=)
  a KMS key by its alias is allowed as what has the alias now
  Redshift reads what is staged for it by a role of its own (role= in the
  URL): --copy-role prints that one's policy instead
  kafka://…?sasl=msk-iam: no URL tells which MSK cluster it is; without
  --msk-cluster the policy is for topics of these names on any of them
  with fan_out= the rights for polling are in it too, for want of a consumer;
  once that is registered, RegisterStreamConsumer may go

\b
Examples:
  flowkit iam app.py --broker 'kinesis://eu-west-1?frames=s3://state/frames' \\
    --checkpoints s3://state/checkpoints --bind features=dynamodb://features
  flowkit iam app.py --bind alerts=firehose://alerts --account 123456789012 \\
    > policy.json
  aws iam create-policy --policy-name app --policy-document file://policy.json
  flowkit iam app.py --input 'sales=s3://archive/sales' --explain \\
    --output report=redshift-data://shop/dev/report?stage=…
"""


UNNAMED = {
    ":domain/*/": "OpenSearch domain",
    ":collection/*": "OpenSearch Serverless collection",
    ":workgroup/*": "Redshift workgroup",
}
"""What stands in resources whose names nobody has told."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("iam", help=HELP, epilog=EXIT_CODES)(iam)


def iam(
    module: Module,
    broker: OptionalBroker = None,
    bind: Annotated[
        list[str] | None,
        typer.Option("--bind", "-b", metavar="NAME=URL", help="Where a sink or topic leads, as for the worker."),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            "--checkpoints", metavar="URL", envvar="FLOWKIT_CHECKPOINTS", help="Where the state is published."
        ),
    ] = None,
    from_savepoint: Annotated[
        str | None,
        typer.Option("--from", metavar="URL", envvar="FLOWKIT_FROM_SAVEPOINT", help="The savepoint to begin with."),
    ] = None,
    savepoints: Annotated[
        list[str] | None,
        typer.Option("--savepoints", metavar="URL", help="Where `flowkit savepoint --to` may lead."),
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="TOPIC=URL", help="What a topic holds, as for flowkit run."),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("--output", "-o", metavar="NAME=URL", help="Where a sink or topic leads, as for flowkit run."),
    ] = None,
    account: Annotated[
        str | None, typer.Option("--account", metavar="NUMBER", help="The account of what is used: 12 digits.")
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            "--region", metavar="NAME", envvar=["AWS_REGION", "AWS_DEFAULT_REGION"], help="Where a URL names none."
        ),
    ] = None,
    partition: Annotated[
        str | None, typer.Option("--partition", metavar="NAME", help="aws, aws-cn, aws-us-gov … [by the region].")
    ] = None,
    msk_cluster: Annotated[
        str | None, typer.Option("--msk-cluster", metavar="ARN", help="The MSK cluster that a kafka:// URL leads to.")
    ] = None,
    copy_role: Annotated[
        bool, typer.Option("--copy-role", help="Instead, the policy of the role that Redshift reads staged objects by.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each statement is for, on stderr.")] = False,
) -> int:
    """Print the policy."""
    from flowkit.aws import statements_of
    from flowkit.worker import copy_rights_of, copy_rights_of_run, rights_of, rights_of_run

    cluster = _checked(account, msk_cluster)
    app = load_app(module)
    binds, inputs, outputs = (
        pairs(option, words or [], what)
        for option, words, what in (
            ("--bind", bind, "NAME=URL"),
            ("--input", input_, "TOPIC=URL"),
            ("--output", output, "NAME=URL"),
        )
    )
    live = {"--broker": broker, "--checkpoints": checkpoints, "--from": from_savepoint, "--savepoints": savepoints}
    given = [name for name, value in {**live, "--bind": binds}.items() if value]
    if (inputs or outputs) and given:
        raise ConfigError(f"{', '.join(given)}: of a worker; --input and --output are of flowkit run: say only one's")
    if copy_role:
        rights = copy_rights_of_run(app, inputs, outputs) if outputs else copy_rights_of(app, dict(binds))
    elif inputs or outputs:
        rights = rights_of_run(app, inputs, outputs)
    else:
        rights = rights_of(
            app,
            dict(binds),
            broker=broker,
            checkpoints=checkpoints,
            from_savepoint=from_savepoint,
            savepoints=savepoints or (),
        )
    if not copy_role:
        rights += _of_logs(os.environ)
    statements = statements_of(
        rights, account=account, region=region or _configured_region(), partition=partition, cluster=cluster
    )
    _tell(statements, explain=explain, copy_role=copy_role, any_cluster=cluster is None)
    return OK


def _checked(account: str | None, cluster: str | None) -> str | None:
    """NAME/ID of an MSK cluster's ARN. Raises ConfigError with what is wrong."""
    problems = []
    if account is not None and not (len(account) == 12 and account.isascii() and account.isdigit()):
        problems.append(f"--account {account}: needs the number of an account, 12 digits")
    found = re.fullmatch(r"arn:[a-z-]+:kafka:[a-z0-9-]+:\d{12}:cluster/([^/*]+/[^/*]+)", cluster or "")
    if cluster is not None and found is None:
        problems.append(f"--msk-cluster {cluster}: needs the ARN that `aws kafka list-clusters-v2` shows")
    if problems:
        raise ConfigError(*problems)
    return None if found is None else found[1]


def _of_logs(environ: Mapping[str, str]) -> "list[Right]":
    """Where the worker's log lines go, and --emf logs."""
    from flowkit.cli.log_shipping import rights_of_logs

    url = environ.get("FLOWKIT_LOGS")
    return [right._replace(why="log lines (FLOWKIT_LOGS)") for right in rights_of_logs(url)] if url else []


def _configured_region() -> str | None:
    """As the AWS tools are configured, for the profile that is chosen."""
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        return None
    try:
        found: str | None = Session().get_config_variable("region")
    except BotoCoreError:
        return None
    return found


def _tell(statements: "Sequence[Statement]", *, explain: bool, copy_role: bool, any_cluster: bool) -> None:
    """The policy on stdout, and what to know about this one on stderr."""
    from flowkit.aws import ACCOUNT, INLINE, MANAGED, REGION, size_of

    policy: dict[str, Any] = {"Version": "2012-10-17", "Statement": [statement.body for statement in statements]}
    text = json_.dumps(policy, indent=2)
    out(text)
    if explain:
        for statement in statements:
            say("\n".join(_explained(statement)))
    missing = [f"{word} by --{word.lower()}" for word in (ACCOUNT, REGION) if re.search(rf"[:.]{word}[:.]", text)]
    if missing:
        say(f"to be put in: {' and '.join(missing)}")
    if not statements:
        whose = "nothing is staged for Redshift" if copy_role else "nothing of Amazon's is used there"
        say(f"{whose}: the role needs no rights")
    if any_cluster and '"kafka-cluster:' in text:
        say("for any MSK cluster of the account: name yours by --msk-cluster")
    for at, what in UNNAMED.items():
        if at in text:
            say(f"for any {what} of the account, since the URL does not tell which: put yours in place of the *")
    size = size_of(policy)
    if size > MANAGED:
        inline = f", though not for an inline one of a role ({INLINE:,})" if size <= INLINE else ""
        say(
            f"too large for a managed policy{inline}: {size:,} characters, and IAM takes {MANAGED:,}. Divide it "
            "into several: a role may have ten"
        )


def _explained(statement: "Statement") -> list[str]:
    """Lines for people on one statement."""
    body = statement.body
    service = body["Action"][0].partition(":")[0]
    actions = ", ".join(action.removeprefix(f"{service}:") for action in body["Action"])
    found = body["Resource"]
    lines = [f"{body['Sid']}: {'; '.join(statement.whys)}", f"    {service}: {actions}"]
    lines += [f"    on {resource}" for resource in ([found] if isinstance(found, str) else found)]
    for operator, keys in body.get("Condition", {}).items():
        how = "like " if "Like" in operator else ""
        for key, value in keys.items():
            lines.append(f"    if {key} is {how}{value if isinstance(value, str) else ' or '.join(value)}")
    return lines
