"""An S3 protocol server for tests: moto on a free loopback port, or the one that FLOWKIT_TEST_S3 names."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from flowkit.store.s3 import S3Place, S3Storage, open_s3

START_SECONDS = 30


@contextmanager
def s3_server() -> Iterator[str]:
    """Its URL. Without one the test is skipped, but not in CI."""
    given = os.environ.get("FLOWKIT_TEST_S3")
    if given:
        yield given
        return
    if importlib.util.find_spec("moto") is None:
        reason = "pip install -e '.[test]', or set FLOWKIT_TEST_S3=http://HOST:PORT"
        if os.environ.get("CI") or os.environ.get("FLOWKIT_TEST_S3_REQUIRED"):
            pytest.fail(f"the tests on S3 must run here (CI or FLOWKIT_TEST_S3_REQUIRED is set): {reason}")
        pytest.skip(f"S3 IS NOT TESTED: {reason}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            assert server.poll() is None, "moto's server ended at once"
            assert time.monotonic() < deadline, f"moto's server does not answer within {START_SECONDS} s"
            time.sleep(0.05)
        yield url
    finally:
        server.kill()
        server.wait(10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/moto-api/", timeout=1):
            return True
    except OSError:
        return False


def s3_environment(url: str) -> dict[str, str]:
    """What makes clients go to the server at `url`, and nowhere else."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "very-secret-testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@asynccontextmanager
async def own_bucket() -> AsyncIterator[S3Storage]:
    """A bucket that no other test has, and a prefix in it."""
    async with open_s3(S3Place(f"b-{uuid.uuid4().hex[:12]}", "some/prefix")) as storage:
        await storage.client.create_bucket(Bucket=storage.place.bucket)
        yield storage
