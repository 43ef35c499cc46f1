"""Where a model runs and in which numbers: device and dtype by name, `auto` for the best that is here.

Knows nothing of models: whether one fits is for the device to say.
"""

import torch

from distillcache.errors import ConfigError

__all__ = ["DTYPES", "dtype_name", "pick_device", "pick_dtype"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name: `auto` (CUDA, then MPS, then CPU), `cpu`, `mps`, `cuda`, `cuda:1`.

    Raises ConfigError for a name that is none, or a device that is not here.
    """
    here = ["cpu"]
    if torch.backends.mps.is_available():
        here.insert(0, "mps")
    if torch.cuda.is_available():
        here.insert(0, "cuda")
    if name == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"--device: must be auto, cpu, mps, cuda or cuda:N, found {name!r}")
    if device.type not in here:
        raise ConfigError(f"--device: no {device.type} device here; found {', '.join(here)}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device: no {name} here; found {torch.cuda.device_count()} CUDA devices, from cuda:0"
        )
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name, `bf16`, `fp16` or `fp32`; `auto` is the fastest that the device has natively.

    `auto`: bf16 on CUDA that has it, fp16 on older CUDA and on MPS, bf16 on a CPU with instructions for it.
    Else fp32: a CPU that has to emulate bf16 is several times slower with it.
    Raises ConfigError for another name.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise ConfigError(f"--dtype: must be one of auto, {', '.join(DTYPES)}, found {name!r}")
    if device.type == "cuda":
        # With emulation, as torch asks by default, every CUDA device says yes.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """The short name of a dtype, as settings and shards write it; torch's own for those that have none."""
    names = {each: name for name, each in DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def cpu_has_bf16() -> bool:
    """True if this CPU multiplies bf16 matrices natively (AVX-512 BF16 or AMX)."""
    # Private in torch, and the only place that asks the CPU itself; absent is no.
    avx512 = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool((avx512 and avx512()) or (amx and amx()))
