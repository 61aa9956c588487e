"""A function called for many items by several processes: results in order, a few ahead of their reader.

A slow reader holds back the processes, not the memory.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

__all__ = ["in_workers"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # items a process

_work: Callable[[Any], Any] | None = None


def _begin(start: Callable[[], Callable[[Any], Any]]) -> None:
    global _work
    _work = start()


def _call(item: Any) -> Any:
    assert _work is not None
    return _work(item)


def in_workers(start: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield the result for each item, in order.

    Args:
        start: called once in each process; returns the function that is called with items. It is pickled, as are items and results.
        items: read a few ahead of the results.
        workers: processes, at least 1.

    Raises:
        BrokenProcessPool: a process was killed, e.g. for its memory.
    """
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(start,)) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(_call, item))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
