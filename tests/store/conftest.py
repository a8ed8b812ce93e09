"""What every test of the store gets."""

from collections.abc import Iterator

import pytest

from tests.store.s3_server import s3_environment, s3_server


@pytest.fixture(autouse=True)
def small_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest is begun anew after a few edits, not after four megabytes of them."""
    monkeypatch.setattr("flowkit.store.catalog.MANIFEST_BYTES", 400)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The URL of an S3 protocol server; buckets of other tests are in it too."""
    with s3_server() as url:
        yield url


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server, which every S3 client of the test goes to."""
    for name, value in s3_environment(s3_url).items():
        monkeypatch.setenv(name, value)
    return s3_url
