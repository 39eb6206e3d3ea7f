"""The GPU that a trial was given, and whether the memory on it is free.

Ray counts GPUs, and shares of them, by number; it doesn't look at them. A process that was killed may hold its memory
for seconds after Ray has given its GPU to the next trial, and one that Ray knows nothing of may hold it for hours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WAIT_S = 60.0
"""How long a trial waits for the memory of its GPU."""
CONTEXT_BYTES = 600 * 2**20
"""What a process that uses a GPU at all takes of it, of which torch's allocator knows nothing: the trial's own."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
GIB = 2**30


class GPUMemoryTaken(RuntimeError):
    """Too little of a GPU's memory came free for a trial to start on it."""


def assigned_indices(assigned: Sequence[str | int], visible: str | None) -> list[int]:
    """The numbers that the GPUs assigned to a trial have among those that its process sees.

    Ray lets a process see its own GPUs only, unless it was told not to (RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES=1).

    Args:
        assigned: what `ray.get_gpu_ids()` gives: numbers, or the names of CUDA_VISIBLE_DEVICES, which may be UUIDs.
        visible: the process's CUDA_VISIBLE_DEVICES; None if it isn't set: all are seen.

    Returns:
        In rising order; [0] if none is assigned, as without Ray.

    Raises:
        RuntimeError: one that is assigned can't be seen.
    """
    if not assigned:
        return [0]
    names = [str(name).strip() for name in assigned]
    if visible is None:
        seen = {name: int(name) for name in names if name.isdigit()}
    else:
        seen = {name.strip(): index for index, name in enumerate(visible.split(","))}
    for name in names:
        if name not in seen:
            raise RuntimeError(
                f"Ray assigned GPU {name} to the trial, and its process doesn't see it: CUDA_VISIBLE_DEVICES="
                f"{visible or ''}. Leave that variable as Ray sets it."
            )
    return sorted(seen[name] for name in names)


def own_indices() -> list[int]:
    """The numbers of this trial's GPUs in this process."""
    ray = sys.modules.get("ray")
    inside = ray is not None and ray.is_initialized()
    return assigned_indices(ray.get_gpu_ids() if inside and ray else [], os.environ.get("CUDA_VISIBLE_DEVICES"))


def assigned_device() -> torch.device:
    """The first GPU of this trial, as torch calls it. It becomes the process's own, which `.cuda()` takes."""
    import torch

    device = torch.device("cuda", own_indices()[0])
    torch.cuda.set_device(device)
    return device


def wait_for_own_gpus(gpus: float, free_share: float) -> None:
    """Waits until the memory of this trial's GPUs is free; at once where there are none but by name.

    Args:
        gpus: how many the trial has, or the share of one.
        free_share: of its part of the memory, which must be free; 0 to not look.

    Raises:
        GPUMemoryTaken: it does not come free within a minute.
    """
    if not gpus or not free_share or find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():  # Ray counts GPUs that are not there if it is told to
        return

    for index in own_indices():
        wait_for_memory(index, free_share, min(1.0, gpus), read=partial(_read, index))


def wait_for_memory(
    index: int,
    free_share: float,
    part: float,
    *,
    read: Callable[[], tuple[int, int]],
    holders: Callable[[], Mapping[int, int]] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Waits until a GPU has the memory that a trial needs to start.

    Args:
        index: the GPU's number, for messages.
        free_share: of its part, which must be free.
        part: the trial's part of the GPU: 1 for all, 1/n for a share.
        read: gives the bytes that are free for this process, and those of the whole GPU.
        holders: gives the bytes that processes hold, by their ids, as far as known; nvidia-smi by default.
        clock: seconds.
        sleep: waits so many seconds.

    Raises:
        GPUMemoryTaken: it does not come free within a minute.
    """
    until, pause = clock() + WAIT_S, _FIRST_PAUSE_S
    while True:
        free, total = read()
        needed = free_share * part * total - CONTEXT_BYTES
        if free >= needed:
            return
        left = until - clock()
        if left <= 0:
            break
        sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    asked = "the GPU" if part == 1 else f"its part, {part:g} of the GPU,"
    known = (holders or _holders)()
    who = ", ".join(f"{pid} ({held / GIB:.1f} GiB)" for pid, held in sorted(known.items()) if pid != os.getpid())
    raise GPUMemoryTaken(
        f"GPU {index} has {free / GIB:.1f} of its {total / GIB:.1f} GiB free, and the trial needs "
        f"{max(needed, 0) / GIB:.1f}: {free_share:g} of {asked} less what torch itself takes "
        f"(resources.free_gpu_memory={free_share:g}). {WAIT_S:g} s did not change that: other processes hold the "
        f"memory{f', by id: {who}' if who else ''}. End them, ask for a smaller share (resources.gpu), or lower "
        f"resources.free_gpu_memory; 0 doesn't look."
    )


def _read(index: int) -> tuple[int, int]:
    """The bytes of a GPU that are free, those included that torch holds in this process; and all of them."""
    import torch

    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(index)
    return free + torch.cuda.memory_reserved(index), total


def _holders() -> dict[int, int]:
    """The bytes of GPU memory that processes hold, by id, as far as nvidia-smi knows."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_holders(said)


def parse_holders(text: str) -> dict[int, int]:
    """What `nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits` says, in bytes by id."""
    held: dict[int, int] = {}
    for line in text.splitlines():
        pid, _, mib = line.partition(",")
        if pid.strip().isdigit() and mib.strip().isdigit():  # in a container memory is [N/A]
            held[int(pid)] = held.get(int(pid), 0) + int(mib) * 2**20
    return held
