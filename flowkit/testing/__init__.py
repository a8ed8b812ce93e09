"""What users test their apps with: a whole worker in the test, on a virtual clock, that crashes when told to.

    async with harness(app, seed=7) as h:
        await h.send(transactions, tx)
        await h.advance(minutes(10))
        assert h.sent(alerts) == [...]

The pytest fixtures `flowkit_harness` and `flowkit_seed` come with the package, see `flowkit.testing.plugin`. Every run
of pytest loads that module: so what this room offers is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowkit.testing.harness_app import Harness, harness

__all__ = ["Harness", "harness"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module("flowkit.testing.harness_app")
    globals().update({shown: getattr(module, shown) for shown in __all__})
    return globals()[name]
