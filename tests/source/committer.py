"""A process to be killed: commits numbered outputs to both partitions of `out` for ever, telling each commit made.

    python committer.py DIRECTORY TASK

Each commit of number n puts the texts "TASK n 0" … "TASK n 4" into partition n % 2, and tells "n" on stdout.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import anyio

from flowkit.clock import SystemClock
from flowkit.source.embedded import EmbeddedBroker

OUTPUTS = 5


@dataclass
class Out:
    """One output."""

    partition: int
    value: bytes | None
    topic: str = "out"
    key: bytes | None = None
    time: int = 0


async def main(directory: str, task: str) -> None:
    async with EmbeddedBroker(Path(directory), SystemClock()) as broker:
        await broker.create("out", 2)
        claim = await broker.claim(task, "")
        number = claim.number
        while True:
            number += 1
            outputs = [Out(number % 2, f"{task} {number} {index}".encode()) for index in range(OUTPUTS)]
            await broker.commit(task, claim.epoch, number, os.urandom(8), number, outputs)
            print(number, flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
