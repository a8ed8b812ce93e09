"""What the store tells the log: loaded when there is something to tell, since importing a table must not cost it."""

from typing import Any


def tell(level: str, event: str, /, **facts: Any) -> None:
    """Log an event of the store: `level` is "debug", "info", "warning" or "error"."""
    import structlog

    getattr(structlog.get_logger("flowkit.store"), level)(event, **facts)
