"""What every test of the store gets."""

import pytest


@pytest.fixture(autouse=True)
def small_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest is begun anew after a few edits, not after four megabytes of them."""
    monkeypatch.setattr("flowkit.store.catalog.MANIFEST_BYTES", 400)
