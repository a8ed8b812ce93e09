"""What becomes of a call that fails: on services that take requests and never answer, or do not even read them."""

import asyncio
import gc
import socket
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from flowkit.aws import AwsOptions, open_client, patiently
from flowkit.aws import http as module
from flowkit.errors import SinkError
from flowkit.sink.calls import called
from flowkit.sink.dispatch import TryAgain


@pytest.fixture
async def silent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsOptions]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    async with asyncio.timeout(20):

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(1 << 16):
                pass
            writer.close()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            yield AwsOptions("us-east-1", f"http://127.0.0.1:{port}", tries=2, timeout=0.1)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No ring of objects is found: a worker's collector comes seldom."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_a_call_that_came_to_nothing_holds_no_request(silent: AwsOptions, uncollected: None) -> None:
    """A hand-off's megabytes would stay with each try of a service that hangs."""
    data = b"x" * 1_000
    async with open_client("kinesis", silent, "x") as client:
        before = sys.getrefcount(data)
        for _ in range(2):
            with pytest.raises(TryAgain, match="timeout"):
                await called("x", client.put_records(Records=[{"Data": data, "PartitionKey": "k"}], StreamName="s"))
        assert sys.getrefcount(data) == before


async def test_nor_does_one_that_is_made_again_and_again(silent: AwsOptions, uncollected: None) -> None:
    data = b"x" * 1_000
    async with open_client("s3", silent, "x") as client:
        before = sys.getrefcount(data)
        with pytest.raises(SinkError, match="timeout"):
            await patiently("x", lambda: client.put_object(Bucket="b", Key="k", Body=data), SinkError, seconds=0.3)
        assert sys.getrefcount(data) == before


@pytest.mark.parametrize("size", [1_000, 3_000_000])
@pytest.mark.parametrize("service", ["kinesis", "s3"])
async def test_what_nobody_reads_is_given_up_in_time(
    silent: AwsOptions, monkeypatch: pytest.MonkeyPatch, service: str, size: int
) -> None:
    """S3's requests wait for `100 Continue` before they are sent, others for room on the connection."""
    monkeypatch.setattr(module, "SLOWEST", 30_000_000)
    with socket.socket() as frozen:
        frozen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        frozen.bind(("127.0.0.1", 0))
        frozen.listen()
        options = silent._replace(endpoint=f"http://127.0.0.1:{frozen.getsockname()[1]}")
        async with open_client(service, options, "x") as client:
            if service == "s3":
                call = client.put_object(Bucket="b", Key="k", Body=b"x" * size)
            else:
                call = client.put_records(Records=[{"Data": b"x" * size, "PartitionKey": "k"}], StreamName="s")
            with pytest.raises(TryAgain, match="Read timeout"):
                await called("x", call)
