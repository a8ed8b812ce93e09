"""`flowkit iam`: the IAM policy that an app needs where it runs, and nothing more."""

import json as json_
from typing import Annotated

import typer

from flowkit.cli.arguments import Module, OptionalBroker, pairs
from flowkit.cli.load import load_app
from flowkit.cli.outcome import EXIT_CODES, OK, out, say
from flowkit.errors import ConfigError

HELP = """Print the IAM policy (JSON) that the role of an app's workers needs: what is called there, and nothing else.

It follows from the app's flow and from where its topics, sinks and state are. Give what the worker is given: --broker,
--bind, --checkpoints, and FLOWKIT_STORE_KMS_KEY in the environment; then attach the policy to the role that it runs
under (task role, instance profile, service account). Nothing is asked: neither Amazon's services nor credentials.

Without --account the word ACCOUNT stands in ARNs, and REGION where no region is told: put yours in their place.

\b
What to know about it:
  a lease table, and streams that group_by sends through, are made by the
  first worker: once they are there, CreateTable and CreateStream may go
  streams and tables that are encrypted under a key of your own need
  rights on that key too: their URLs do not tell it
  a KMS key by its alias is allowed as what has the alias now
  with fan_out= the rights for polling are in it too, for want of a consumer;
  once that is registered, RegisterStreamConsumer may go

\b
Examples:
  flowkit iam app.py --broker 'kinesis://eu-west-1?frames=s3://state/frames' \\
    --checkpoints s3://state/checkpoints --bind features=dynamodb://features
  flowkit iam app.py --bind alerts=firehose://alerts --account 123456789012 \\
    | aws iam put-role-policy --role-name app --policy-name app \\
      --policy-document file:///dev/stdin
"""


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
        str | None,
        typer.Option("--partition", metavar="NAME", help="aws, aws-cn, aws-us-gov, …; else that of the region."),
    ] = None,
) -> int:
    """Print the policy."""
    from flowkit.aws import ACCOUNT, REGION, policy_of
    from flowkit.worker import rights_of

    if account is not None and not (len(account) == 12 and account.isascii() and account.isdigit()):
        raise ConfigError(f"--account {account}: needs the number of an account, 12 digits")
    rights = rights_of(
        load_app(module),
        dict(pairs("--bind", bind or [], "NAME=URL")),
        broker=broker,
        checkpoints=checkpoints,
        from_savepoint=from_savepoint,
        savepoints=savepoints or (),
    )
    policy = policy_of(rights, account=account, region=region, partition=partition)
    text = json_.dumps(policy, indent=2)
    out(text)
    missing = [f"{word} by --{word.lower()}" for word in (ACCOUNT, REGION) if f":{word}:" in text]
    if missing:
        say(f"to be put in: {' and '.join(missing)}")
    if not rights:
        say("nothing of Amazon's is used there: the role needs no rights")
    if broker is not None and "sasl=msk-iam" in broker:
        say("not in it: the rights to topics, groups and transactions of an MSK cluster (kafka-cluster:…)")
    return OK
