"""Ensembles written as C, compiled, and run on images."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

STRICT = ("-O2", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
QUICK = ("-O1", "-std=c99", "-Wall", "-Wextra", "-Werror")
EXAMPLE = Path(__file__).parents[1] / "examples" / "edge.c"
DRIVER = """#include "ensemble.c"
#include <stdio.h>
int main(void)
{
    static uint8_t pixels[PREDICT_HEIGHT * PREDICT_WIDTH * PREDICT_CHANNELS];
    static float probabilities[PREDICT_CLASSES];
    static int32_t found[3];
    while (fread(pixels, sizeof pixels, 1, stdin) == 1) {
        found[0] = predict(pixels, probabilities);
        found[1] = members_run();
        found[2] = answered_with();
        fwrite(found, sizeof found, 1, stdout);
        fwrite(probabilities, sizeof probabilities, 1, stdout);
        fwrite(logits, sizeof logits, 1, stdout);
    }
    return 0;
}
"""
"""Reads images and writes what is predicted of each; logits as the combiner leaves them."""
TARGETS = {
    "host": ("cc", ()),
    "aarch64": ("aarch64-linux-gnu-gcc", ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")),
    "arm": ("arm-linux-gnueabihf-gcc", ("qemu-arm", "-L", "/usr/arm-linux-gnueabihf")),
}
"""Compiler and emulator by processor."""


@dataclass(frozen=True, eq=False)
class Found:
    labels: NDArray[np.int32]
    members_run: NDArray[np.int32]
    answered_with: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32]
    """(B, M, K) as the combiner leaves them, of members that did not run what an earlier image left."""


def need(*programs: str) -> None:
    """Skip the test where a program is absent."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def run(folder: Path, pixels: NDArray[np.uint8], *, target: str = "host", flags: Sequence[str] = STRICT) -> Found:
    """Compile `ensemble.c` and return what it predicts for images (B, H, W, C)."""
    compiler, emulator = TARGETS[target]
    need(compiler, *emulator[:1])
    (folder / "driver.c").write_text(DRIVER)
    program = folder / f"driver-{target}"
    subprocess.run([compiler, *flags, "-o", program, folder / "driver.c", "-lm"], check=True)
    out = subprocess.run([*emulator, program], input=pixels.tobytes(), capture_output=True, check=True).stdout
    header = (folder / "ensemble.h").read_text()
    classes, members = (int(header.split(f"#define PREDICT_{name} ")[1].split()[0]) for name in ("CLASSES", "MEMBERS"))
    kind = [("found", "<i4", 3), ("probabilities", "<f4", classes), ("logits", "<f4", (members, classes))]
    rows: NDArray[Any] = np.frombuffer(out, np.dtype(kind))
    assert len(rows) == len(pixels)
    return Found(*rows["found"].T, rows["probabilities"], rows["logits"])
