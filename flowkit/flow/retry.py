"""How often something is tried that fails."""

from dataclasses import dataclass
from typing import Any

from flowkit.errors import ConfigError


@dataclass(frozen=True)
class Retry:
    """How often an event that makes an agent raise, or a call that fails, is tried before it goes to the dead letters.

    `attempts` counts all runs (1: no retry). The n-th retry waits `backoff * 2**(n-1)` ms, at most `max_backoff`.
    Only `errors` are retried; anything else goes to the dead letters at once.
    """

    attempts: int = 1
    backoff: int = 100
    max_backoff: int = 30_000
    errors: tuple[type[Exception], ...] = (Exception,)

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.backoff < 0 or self.max_backoff < 0:
            raise ConfigError("Retry: attempts must be at least 1, backoff and max_backoff at least 0 ms")
        errors: Any = self.errors
        if not isinstance(errors, tuple) or not all(isinstance(e, type) and issubclass(e, Exception) for e in errors):
            raise ConfigError(f"Retry: errors={errors!r}: give a tuple of exception types")

    def wait(self, attempt: int, error: Exception) -> int | None:
        """How long (ms) to wait before another try after the `attempt`-th failed, or None: give up."""
        if attempt >= self.attempts or not isinstance(error, self.errors):
            return None
        doublings = min(attempt - 1, 64)  # by then any backoff is beyond any maximum
        return min(int(self.backoff * 2**doublings), self.max_backoff)
