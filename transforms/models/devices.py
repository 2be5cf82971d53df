"""The device that a model runs on: its memory, its threads and cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from transforms.errors import UserError

Item = TypeVar("Item")
Done = TypeVar("Done")


MEMORY_OF_A_PROCESS = 2 << 30
"""Bytes of the machine's memory for each of many processes on its CPU: the libraries and a small model take half of it."""


class Batched(Protocol):
    """A model that works on so many things at once.

    Attributes:
        batch_size: how many; less from then on where the device had too little memory.
    """

    batch_size: int


def cores() -> int:
    """Of those that the machine has the ones that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processes_with_room() -> int:
    """As many processes as there are cores and memory for."""
    return max(1, min(cores(), memory() // MEMORY_OF_A_PROCESS))


def in_batches(
    model: Batched, items: Sequence[Item], work: Callable[[Sequence[Item], int], Done], too_little: str
) -> Iterator[tuple[Sequence[Item], Done]]:
    """Works through things in batches; where the device has too little memory for one, batches are halved for good.

    Args:
        model: says how many make a batch, and keeps what is learned. Threads may share it.
        items: what is worked on, in order.
        work: what is done with some of them, at most as many as a full batch has, which is its other argument.
        too_little: what to say where the memory doesn't do for a single one.

    Yields:
        each batch, and what became of it.

    Raises:
        UserError: a single one is too many.
    """
    start = 0
    while start < len(items):
        size = model.batch_size
        batch = items[start : start + size]
        try:
            done = work(batch, size)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if size == 1:
                raise UserError(too_little) from error
        else:
            start += len(batch)
            yield batch, done
            continue
        # Here, since an error holds on to what was on the device when it was raised. Another thread may have halved it already.
        model.batch_size = min(model.batch_size, size // 2)
        release_memory()


def out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had too little memory for what was asked."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def release_memory() -> None:
    """Gives back what torch holds on to, so that a smaller batch finds one piece that is large enough."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


@contextlib.contextmanager
def one_core(device: str) -> Iterator[None]:
    """Has torch's products run on one core meanwhile, where the device is the CPU.

    The products of a small model are done before a second thread has been woken: with more of them a step takes as long, or
    three times as long where they share the cores with others. And what comes out doesn't depend on how many cores there are.
    """
    if device != "cpu":
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
