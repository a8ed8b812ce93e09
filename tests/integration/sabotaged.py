"""`flowkit …` with a part of the commit protocol broken on purpose: a test that cannot fail proves nothing.

python -m tests.integration.sabotaged HOW WORDS…
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from flowkit.cli import main
from flowkit.source import embedded_tasks
from flowkit.source.embedded import EmbeddedBroker
from flowkit.store import Frame
from flowkit.worker.task import Out, Task


def outputs_before_positions() -> None:
    """Outputs and positions are two transactions: what dies in between sends its outputs again."""
    carry_out = Task._carry_out

    async def in_two_steps(task: Task, frame: Frame, outs: list[Out], handoffs: dict[str, Any]) -> None:
        assert isinstance(task.broker, EmbeddedBroker)
        for out in outs:
            await task.broker.put(out.topic, [(out.key, out.value, out.time)], out.partition)
        await asyncio.sleep(0.4)
        await carry_out(task, frame, [], handoffs)

    setattr(Task, "_carry_out", in_two_steps)  # noqa: B010  a type checker would rightly complain


def no_epochs() -> None:
    """Nobody asks who owns a task: a zombie's commits count."""

    def must_apply(*_: object) -> bool:
        return True

    async def renew(_broker: EmbeddedBroker, _worker: str, _tasks: Sequence[str]) -> list[str]:
        return []

    setattr(embedded_tasks, "must_apply", must_apply)  # noqa: B010
    setattr(EmbeddedBroker, "renew", renew)  # noqa: B010


if __name__ == "__main__":
    {"outputs_before_positions": outputs_before_positions, "no_epochs": no_epochs}[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
