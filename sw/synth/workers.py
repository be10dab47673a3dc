"""Runs of the tools side by side."""
from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

#: Processes at once.
WORKERS = 2
#: Told how many tasks of how many are done.
Progress = Callable[[int, int], None]
Result = TypeVar("Result")


def each(function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], progress: Progress | None = None) -> list[Result]:
    """``function`` of the arguments of every task, in processes; results in the order of the tasks. The first error ends what has not
    begun and is raised."""
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("fork")) as pool:
        running = [pool.submit(function, *task) for task in tasks]
        try:
            for done, task in enumerate(as_completed(running), 1):
                task.result()
                if progress is not None:
                    progress(done, len(running))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [task.result() for task in running]
