"""What users test their apps with: a whole worker in the test, on a virtual clock, that crashes when told to.

async with harness(app, seed=7) as h:
    await h.send(transactions, tx)
    await h.advance(minutes(10))
    assert h.sent(alerts) == [...]
"""

from flowkit.testing.harness import Harness, harness

__all__ = ["Harness", "harness"]
