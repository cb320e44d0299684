"""What results were measured on and with."""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparsemble


def machine(device: torch.device) -> dict[str, Any]:
    """Describe this machine."""
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "platform": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Return the versions that results may depend on."""
    return {
        "sparsemble": sparsemble.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def source_revision() -> str:
    """Return the git revision of the source, or nothing outside a checkout."""
    head = Path(sparsemble.__file__).resolve().parents[2] / ".git" / "HEAD"
    try:
        text = head.read_text("utf-8").strip()
        if text.startswith("ref: "):
            text = (head.parent / text.removeprefix("ref: ")).read_text("utf-8").strip()
        return text
    except OSError:
        return ""
