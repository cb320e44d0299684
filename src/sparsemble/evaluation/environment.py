"""What results were measured on and with."""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparsemble
from sparsemble.runtime.kernels.jit import lanes

NUMBERS = {
    "vendor_id": "",
    "cpu family": "family ",
    "model": "model ",
    "stepping": "stepping ",
    "CPU implementer": "implementer ",
    "CPU variant": "variant ",
    "CPU part": "part ",
}
"""What /proc/cpuinfo calls the numbers that tell a processor's generation, on x86 and ARM, and what we do."""


def machine(device: torch.device) -> dict[str, Any]:
    """Describe this machine; `vectors` is how many floats our engine computes at once."""
    return {
        "processor": processor(),
        "vectors": lanes(),
        "cores": os.cpu_count() or 1,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "platform": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """Return the processor's name, and the numbers of its generation, which names such as "AMD EPYC" hide."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    return described(text)


def described(cpuinfo: str) -> str:
    """Return the description of the first processor in a text as in /proc/cpuinfo."""
    facts: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    numbers = ", ".join(name + facts[key] for key, name in NUMBERS.items() if facts.get(key))
    return (facts.get("model name") or platform.machine()) + (f" ({numbers})" if numbers else "")


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
