"""Servers that speak the protocols of Amazon's services, each in a process of its own on a free loopback port.

    moto        most services, in memory                    python, `moto[server]`
    ministack   most services; runs Lambda functions        python
    kinesalite  Kinesis: the one that splits shards right   node
    dynamodb    Amazon's own DynamoDB Local                 java
    osmem       OpenSearch's documents and bulk requests    a program of its own, from PyPI

They are installed once, into a cache outside the checkout, with environments of their own: none of their dependencies
is one of flowkit's. Where one cannot be had its tests say so and are skipped, but not in CI.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kafka.jars import locked

VERSIONS = {
    "moto[server]": "5.2.5",
    "ministack": "1.5.33",
    "kinesalite": "3.3.3",
    "DynamoDBLocal": "3.1.0",
    "osmem-server": "0.1.6",
}
START_SECONDS = 60

KINESALITE = """
const server = require('kinesalite')({createStreamMs: 5, deleteStreamMs: 5, updateStreamMs: 5, shardLimit: 5000});
server.listen(Number(process.argv[1]), '127.0.0.1');
"""

DYNAMODB_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>flowkit.tests</groupId><artifactId>dynamodb</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>software.amazon.dynamodb</groupId><artifactId>DynamoDBLocal</artifactId>
      <version>{VERSIONS["DynamoDBLocal"]}</version>
    </dependency>
  </dependencies>
</project>
"""

DYNAMODB = """
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import software.amazon.dynamodb.services.local.main.ServerRunner;
import software.amazon.dynamodb.services.local.server.DynamoDBProxyServer;

public class Loopback {
    public static void main(String[] words) throws Exception {
        var local = ServerRunner.createServerFromCommandLineArgs(words);
        var field = DynamoDBProxyServer.class.getDeclaredField("server");
        field.setAccessible(true);
        ((ServerConnector) ((Server) field.get(local)).getConnectors()[0]).setHost("127.0.0.1");
        local.safeStart();
        local.join();
    }
}
"""


def cache() -> Path:
    """Where what tests need beyond the project's own environment is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowkit-tests"


def installed(package: str) -> Path:
    """The `bin` of an environment that holds a Python package. The first call on a machine makes it."""
    name = package.partition("[")[0]
    ready = cache() / f"{name}-{VERSIONS[package]}"
    return _made(ready, package, lambda place: _pip(place, f"{package}=={VERSIONS[package]}")) / "bin"


def node_modules(package: str) -> Path:
    """A directory in which `require` finds a node package."""
    ready = cache() / f"{package}-{VERSIONS[package]}"
    return _made(ready, package, lambda place: _npm(place, f"{package}@{VERSIONS[package]}"))


def _made(ready: Path, package: str, make: Callable[[Path], None]) -> Path:
    done = ready / "ready"
    if not done.exists():
        with locked(ready):
            if not done.exists():
                shutil.rmtree(ready, ignore_errors=True)
                try:
                    make(ready)
                except (OSError, subprocess.CalledProcessError) as error:
                    _cannot(package, error)
                done.touch()
    return ready


def _cannot(package: str, error: Exception) -> None:
    said = getattr(error, "stderr", None) or error
    if os.environ.get("CI") or os.environ.get("FLOWKIT_TEST_AWS_REQUIRED"):
        pytest.fail(f"the tests on {package} must run here (CI or FLOWKIT_TEST_AWS_REQUIRED is set): {said}")
    pytest.skip(f"AWS IS NOT TESTED: {package} could not be installed: {said}")


def _pip(place: Path, wanted: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, capture_output=True, text=True)
    words = [str(place / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", wanted]
    subprocess.run(words, check=True, capture_output=True, text=True)


def _npm(place: Path, wanted: str) -> None:
    place.mkdir(parents=True)
    words = ["npm", "install", "--prefix", str(place), "--no-audit", "--no-fund", "--silent", wanted]
    subprocess.run(words, check=True, capture_output=True, text=True)


def _maven(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "pom.xml").write_text(DYNAMODB_POM)
    (place / "Loopback.java").write_text(DYNAMODB)
    words = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs", "-DincludeScope=runtime"]
    subprocess.run(words, cwd=place, check=True, capture_output=True, text=True)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    words: Sequence[str], url: str, *, environ: Mapping[str, str] | None = None, log: Path | None = None
) -> Iterator[str]:
    """A server's process, from when it answers (anything) at `url` until it is stopped."""
    out = subprocess.DEVNULL if log is None else log.open("ab")
    environment = {**os.environ, **(environ or {})}
    server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            assert server.poll() is None, f"{words[0]} ended at once"
            assert time.monotonic() < deadline, f"{words[0]} does not answer within {START_SECONDS} s"
            time.sleep(0.05)
        yield url
    finally:
        server.kill()
        server.wait(10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@contextmanager
def moto() -> Iterator[str]:
    """Moto's server."""
    port = free_port()
    words = [str(installed("moto[server]") / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with running(words, f"http://127.0.0.1:{port}/moto-api/") as url:
        yield url.removesuffix("/moto-api/")


@contextmanager
def ministack() -> Iterator[str]:
    """Ministack's server."""
    port = free_port()
    environ = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "LAMBDA_EXECUTOR": "local"}
    with running([str(installed("ministack") / "ministack")], f"http://127.0.0.1:{port}", environ=environ) as url:
        yield url


@contextmanager
def kinesalite() -> Iterator[str]:
    """Kinesalite's server, not by its command line, which would listen on all interfaces."""
    port = free_port()
    environ = {"NODE_PATH": str(node_modules("kinesalite") / "node_modules")}
    with running(["node", "-e", KINESALITE, str(port)], f"http://127.0.0.1:{port}", environ=environ) as url:
        yield url


@contextmanager
def dynamodb() -> Iterator[str]:
    """DynamoDB Local, not by its command line, which would listen on all interfaces."""
    port = free_port()
    package = "DynamoDBLocal"
    place = _made(cache() / f"{package}-{VERSIONS[package]}", package, _maven)
    words = ["java", f"-Dsqlite4java.library.path={place / 'libs'}", "-cp", f"{place / 'libs'}/*"]
    words += [str(place / "Loopback.java"), "-inMemory", "-sharedDb", "-disableTelemetry", "-port", str(port)]
    with running(words, f"http://127.0.0.1:{port}") as url:
        yield url


@contextmanager
def osmem() -> Iterator[str]:
    """Osmem's server."""
    port = free_port()
    (program,) = (installed("osmem-server").parent / "lib").glob("python3*/site-packages/osmem_server/bin/osmem-server")
    words = [str(program), "-addr", f"127.0.0.1:{port}", "-no-stdin-watch", "-parent-pid", str(os.getpid())]
    with running(words, f"http://127.0.0.1:{port}") as url:
        yield url


def aws_environment(url: str) -> dict[str, str]:
    """What makes all clients go to the server at `url`, and nowhere else."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "very-secret-testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
