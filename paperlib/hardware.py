"""What this machine computes with: device, precision, and a description for provenance."""

import os
import platform

import torch


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
