"""Apache Kafka's jars, fetched once by Maven coordinates into a cache outside the checkout."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

VERSION = "4.4.0"

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>flowkit.tests</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


def missing() -> str | None:
    """What this machine lacks to run Kafka, as a sentence; None if it has everything."""
    lacking = [tool for tool in ("java", *(() if _cache().is_dir() else ("mvn",))) if shutil.which(tool) is None]
    if not lacking:
        return None
    tools = " and ".join(lacking)
    return f"Apache Kafka needs {tools} on the PATH (Java 17 or later, Maven), or FLOWKIT_TEST_KAFKA=host:port"


def need_kafka() -> None:
    """Skip, saying why, if Kafka cannot run here; fail where it must run."""
    reason = missing()
    if reason is None:
        return
    if os.environ.get("CI") or os.environ.get("FLOWKIT_TEST_KAFKA_REQUIRED"):
        pytest.fail(f"the tests on Kafka must run here (CI or FLOWKIT_TEST_KAFKA_REQUIRED is set): {reason}")
    pytest.skip(f"KAFKA IS NOT TESTED: {reason}")


def jars() -> Path:
    """The directory with Kafka's jars. The first call on a machine fetches them (about 40 MB)."""
    ready = _cache()
    if ready.is_dir():
        return ready
    with locked(ready):
        if not ready.is_dir():
            _fetch(ready)
    return ready


@contextmanager
def locked(ready: Path) -> Iterator[None]:
    """Nobody else makes `ready` meanwhile. A killed run holds up nobody: the lock goes with its process."""
    ready.parent.mkdir(parents=True, exist_ok=True)
    with (ready.parent / f"{ready.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "flowkit-tests" / f"kafka-{VERSION}"


def _fetch(ready: Path) -> None:
    with tempfile.TemporaryDirectory(dir=ready.parent, prefix="draft-") as draft:
        (Path(draft) / "pom.xml").write_text(POM)
        done = subprocess.run(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs", "-DincludeScope=runtime"],
            cwd=draft,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"mvn could not fetch Kafka {VERSION}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        (Path(draft) / "libs").rename(ready)
