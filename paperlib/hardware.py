"""What this machine computes with: device, precision, and a description for provenance."""

import ctypes
import os
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of ``mallopt`` in ``malloc.h``."""


def device() -> torch.device:
    """The first CUDA GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(name: str) -> torch.dtype:
    """The dtype of recurrent layers for ``float32``, ``bfloat16`` or ``auto``.

    ``auto`` is bfloat16 where the hardware multiplies matrices in it (a CUDA GPU of compute
    capability 8 or more, a CPU with AMX) and float32 elsewhere, where bfloat16 would be slower.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if torch.cuda.is_available():
        fast = torch.cuda.get_device_capability()[0] >= 8
    else:
        fast = torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def keep_memory() -> None:
    """Let this process keep the memory that it frees, so that every step finds its buffers again.

    The C library gives large buffers back to the system at once, and getting them anew, page by
    page, costs a training step on a CPU up to a third of its time. Without effect elsewhere than
    on glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # Some releases take no more than 32 MiB as the size up to which memory is kept.
    mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def describe() -> dict:
    """Device, processor, threads and versions: what the last digits of a result depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu or "CPU",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or "unknown"
