"""Work that is awaited whole goes on to its end, whoever is cancelled meanwhile."""

import asyncio

import pytest

from flowkit.worker.whole import whole


async def test_the_result_and_the_error_are_those_of_the_work() -> None:
    async def work(fails: bool) -> str:
        if fails:
            raise OSError("no")
        return "done"

    assert await whole(work(False)) == "done"
    with pytest.raises(OSError, match="no"):
        await whole(work(True))


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_hears_of_it_once_the_work_is_done(fails: bool) -> None:
    go, begun, done = asyncio.Event(), asyncio.Event(), False

    async def work() -> None:
        nonlocal done
        begun.set()
        await go.wait()
        done = True
        if fails:
            raise OSError("no")

    waiter = asyncio.create_task(whole(work()))
    await begun.wait()
    for _ in range(3):
        waiter.cancel()
        await asyncio.sleep(0)
        assert not waiter.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert done
