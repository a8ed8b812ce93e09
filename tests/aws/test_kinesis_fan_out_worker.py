"""Workers to which records are pushed: killed, cut off, resharded; and at a server that pushes none."""

import json
from pathlib import Path

import pytest

from tests.aws.proxy import Proxy, proxy_to
from tests.aws.servers import aws_environment
from tests.aws.workers import Fleet, check_counts, split, split_in_two


def actions(proxy: Proxy, stream: str) -> set[str]:
    """What was called about a stream's records."""
    of_stream = [each for each in proxy.requests if each.service == "kinesis" and stream in json.dumps(each.json)]
    return {each.action for each in of_stream} & {"GetShardIterator", "SubscribeToShard"}


async def test_workers_one_killed_the_connections_cut(ministack: str, tmp_path: Path) -> None:
    async with proxy_to(ministack, watched=False) as proxy:
        environ = {**aws_environment(ministack), "AWS_ENDPOINT_URL_KINESIS": proxy.url}
        async with Fleet(tmp_path, environ, options="&fan_out=yes") as fleet:
            fleet.start("a")
            await fleet.put(range(300))
            await fleet.until(300)
            assert proxy.cut() == 2
            await fleet.put(range(300, 600))
            await fleet.until(600)
            fleet.start("b")
            fleet.kill("a")
            await fleet.put(range(600, 900))
            check_counts(await fleet.until(900), 900)
            assert actions(proxy, f"{fleet.name}-in") == {"SubscribeToShard"}
            assert await fleet.stop("b") == 0  # it speaks to a proxy in this loop
            listed = await fleet.streams.client.describe_stream_summary(StreamName=f"{fleet.name}-in")
            found = await fleet.streams.client.list_stream_consumers(
                StreamARN=listed["StreamDescriptionSummary"]["StreamARN"]
            )
            assert [each["ConsumerName"] for each in found["Consumers"]] == [f"{fleet.name}.totals"]
    for name in ("a", "b"):
        assert "no enhanced fan-out" not in (tmp_path / f"{name}.log").read_text()


async def test_a_reshard_while_records_are_pushed(ministack: str, tmp_path: Path) -> None:
    async with Fleet(tmp_path, aws_environment(ministack), options="&fan_out=test", shards=1) as fleet:
        fleet.start("a")
        await fleet.put(range(200))
        await fleet.until(200)  # this server forgets what lies in a parent
        await split_in_two(fleet.streams, f"{fleet.name}-in")
        await fleet.put(range(200, 400))
        check_counts(await fleet.until(400), 400)
        assert await fleet.stop("a") == 0


async def test_workers_at_a_server_without_it_poll(
    kinesalite: str, ministack_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environ = {**aws_environment(ministack_url), "AWS_ENDPOINT_URL_KINESIS": kinesalite}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    async with Fleet(tmp_path, environ, options="&fan_out=yes") as fleet:
        fleet.start("a")
        await fleet.put(range(200))
        await split(fleet.streams, f"{fleet.name}-in", 0)
        await fleet.put(range(200, 400))
        check_counts(await fleet.until(400), 400)
        assert await fleet.stop("a") == 0
    assert (tmp_path / "a.log").read_text().count("no enhanced fan-out") == 1
