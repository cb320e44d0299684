"""Which device to compute on."""

import torch

from sparsemble.core.errors import InputError


def choose_device(device: str) -> str:
    """Return the device to use: auto (CUDA where there is any), cpu, cuda or cuda:N."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise InputError(f'device = "{device}" is not known; use auto, cpu, cuda or cuda:N')
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise InputError(
            f'device = "{device}" is not there: this machine shows {torch.cuda.device_count()} CUDA devices to torch '
            f"{torch.__version__}; use --device cpu"
        )
    return device
