"""The memory of the device that a model runs on."""

from __future__ import annotations


def out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had too little memory for what was asked."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def release_memory() -> None:
    """Gives back what torch holds on to, so that a smaller batch finds one piece that is large enough."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
