"""What this machine computes with: device, precision, and a description for provenance."""

import ctypes
import functools
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from paperlib.threads import cores

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of ``mallopt`` in ``malloc.h``."""


_rounded = False
"""Whether :func:`rounded_products` is on, in whatever thread: gradients are computed in others."""


class HardwareError(RuntimeError):
    """The hardware cannot do what a profile asks for; the message is one sentence for the user."""


def device() -> torch.device:
    """The first CUDA GPU, told to compute float32 as it is, or the CPU."""
    if torch.cuda.is_available() and not _rounded:
        for backend in (torch.backends.cudnn.rnn, torch.backends.cuda.matmul):
            backend.fp32_precision = "ieee"  # by default the former rounds to TF32
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(name: str) -> str:
    """What ``float32``, ``mixed`` or ``auto`` means for a training here: *float32* or *mixed*.

    In mixed precision the recurrent layers work in bfloat16 and all other matrix products are
    those of :func:`rounded_products`; parameters, losses and validation stay float32. ``auto`` is
    mixed where the hardware multiplies bfloat16 matrices (a CUDA GPU of compute capability 8 or
    more, a CPU with AMX or AVX-512 for bfloat16) and float32 elsewhere, where that is slower.

    Raises :class:`HardwareError` for ``mixed`` where the hardware has no bfloat16 at all.
    """
    if name == "mixed" and not has_bfloat16():
        raise HardwareError(
            f"{_gpu() or _processor()} cannot train in mixed precision, for it has no LSTM in "
            'bfloat16; set `precision = "auto"` or `precision = "float32"` in the profile'
        )
    if name != "auto":
        return name
    if torch.cuda.is_available():
        fast = torch.cuda.get_device_capability()[0] >= 8
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "mixed" if fast else "float32"


@functools.cache
def has_bfloat16() -> bool:
    """Whether an LSTM can be trained in bfloat16 here, which is found out by trying."""
    here = device()
    on_cpu = here.type == "cpu"
    # On a GPU autocast would have it computed in float16, so what goes in is bfloat16 there.
    like = {"device": here, "dtype": torch.float32 if on_cpu else torch.bfloat16}
    # No module: its weights would be drawn from the global random state.
    weights = [torch.zeros(shape, **like) for shape in ((4, 1), (4, 1), (4,), (4,))]
    inputs, state, cell = torch.zeros(3, 1, 1, 1, **like)
    inputs.requires_grad_()
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=on_cpu):
            outputs, *_ = torch.lstm(
                inputs, (state, cell), weights, True, 1, 0.0, True, False, False
            )
        outputs.sum().backward()
    except RuntimeError:
        return False
    return True


@contextmanager
def rounded_products(enabled: bool = True) -> Iterator[None]:
    """Inside, float32 matrices are multiplied as if rounded, with sums and results in float32.

    A CPU that multiplies bfloat16 rounds to that (8 bits, against 24 of float32). A GPU does so in
    the large sums over the vocabulary (:func:`rounds_to_bfloat16`), and rounds to TF32 (11 bits) in
    all other products. Unlike autocast this leaves a sum of many logits its last digits. A CPU's
    gradients by logits and their products are bfloat16 too (:mod:`paperlib.models.products`).
    """
    backends = (
        (torch.backends.mkldnn.matmul, "bf16"),
        (torch.backends.cuda.matmul, "tf32"),
        (torch.backends.cudnn.rnn, "tf32"),
    )
    global _rounded
    before, was_rounded = [backend.fp32_precision for backend, _ in backends], _rounded
    try:
        _rounded = enabled
        for backend, rounded in backends:
            backend.fp32_precision = rounded if enabled else "ieee"
        yield
    finally:
        _rounded = was_rounded
        for (backend, _), own in zip(backends, before, strict=True):
            backend.fp32_precision = own


def rounds_to_bfloat16(device: torch.device) -> bool:
    """Whether sums over the vocabulary on ``device`` round what they multiply to bfloat16 now.

    A CPU does so in all products; a GPU before compute capability 8 has no fast bfloat16.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
        return False
    return _rounded and device.type in ("cuda", "cpu")


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
    return {
        "device": _gpu() or "CPU",
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _instructions() -> str:
    """The widest that PyTorch uses: some processors of one name have others."""
    bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.cpu.get_cpu_capability() + (" with bfloat16" if bfloat16 else "")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or "unknown"
