"""Code for AVX2 and NEON, run under user-mode emulation: the same logits as here. Skipped where qemu is absent."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

from sparsemble.runtime.compiler.batched import BatchPlanner
from sparsemble.runtime.compiler.conversions import add_conversions
from sparsemble.runtime.compiler.dead_channels import remove_dead_channels
from sparsemble.runtime.compiler.execution_plan import DRIVER, BufferAddress, ExecutionPlan
from sparsemble.runtime.compiler.fused import fuse
from sparsemble.runtime.compiler.planner import Planner
from sparsemble.runtime.compiler.single_image import SingleImagePlanner
from sparsemble.runtime.compiler.workspace import Workspace
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.kernels import jit
from sparsemble.runtime.network import Convolution, Flatten, Input, Linear, MaxPool, Network, Relu, Steps, Weight
from tests.helpers import covering
from tests.quantised import with_integers

BASE = 0x2_0000_0000
"""Where the emulated program maps its memory, so that addresses in the tables are known beforehand."""
PROGRAM = """
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
void network(void *table, long first, long last);
int main(int count, char **word) {
    int file = open(word[1], O_RDWR);
    long size = lseek(file, 0, SEEK_END);
    char *base = (char *)0x200000000;
    if (mmap(base, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != base) return 1;
    network(base + atol(word[2]), 0, 0);
    return msync(base, size, MS_SYNC);
}
"""


@dataclass(frozen=True)
class Processor:
    """Emulator, compiler of the program, and what LLVM is told of the processor."""

    emulator: Sequence[str]
    compiler: str
    triple: str
    features: str
    lanes: int
    dot: str


PROCESSORS = {
    "avx2": Processor(
        ("qemu-x86_64", "-cpu", "Haswell"), "gcc", "x86_64-unknown-linux-gnu", "+avx2,+fma,+bmi2", 8, "maddwd"
    ),
    "neon": Processor(
        ("qemu-aarch64", "-cpu", "cortex-a72"),
        "aarch64-linux-gnu-gcc",
        "aarch64-unknown-linux-gnu",
        "+neon",
        4,
        "saddlp",
    ),
    "neon-dotprod": Processor(
        ("qemu-aarch64", "-cpu", "max"),
        "aarch64-linux-gnu-gcc",
        "aarch64-unknown-linux-gnu",
        "+neon,+dotprod",
        4,
        "sdot",
    ),
}


RUNS = [(BatchPlanner, True), (SingleImagePlanner, True), (SingleImagePlanner, False), (BatchPlanner, False)]
"""Of several images or one, in 8 bits or float32."""


def small_network(*, in_8_bits: bool) -> Network:
    rng = np.random.default_rng(0)

    def weight(outputs: int, inputs: int, size: int) -> Weight:
        dense = rng.normal(size=(outputs, inputs, size, size)) * (rng.random((outputs, inputs, size, size)) > 0.5)
        return with_integers(Weight.from_dense(dense))

    def biases(count: int) -> np.ndarray:
        return np.linspace(-1, 1, count).astype(np.float32)

    last = weight(3, 9 * 5 * 4, 1)
    nodes = (
        Input(),
        Convolution((0,), weight(6, 3, 3), biases(6), padding=(1, 1)),
        Relu((1,)),
        MaxPool((2,), (2, 2), (2, 2)),
        Convolution((3,), weight(9, 6, 3), biases(9), padding=(1, 1)),
        Flatten((4,)),
        Linear((5,), replace(last, shape=last.shape[:2]), biases(3)),
    )
    return Network((3, 10, 8), nodes, {2: Steps(2.0**-5, 3), 4: Steps(2.0**-4, 120)} if in_8_bits else {})


def run_emulated(planner: Planner, images: np.ndarray, processor: Processor, folder: Path) -> np.ndarray:
    """Return the logits that a program for another processor computes."""
    plan = planner.plan({})
    workspace = Workspace(plan)
    memory, table = memory_image(plan, workspace, images)
    module = jit._module({"network" if n == DRIVER else n: k for n, k in plan.functions().items()})
    module.triple = processor.triple
    target = llvm.Target.from_triple(processor.triple).create_target_machine(
        cpu="", features=processor.features, opt=3, reloc="pic"
    )
    (folder / "network.o").write_bytes(target.emit_object(jit._optimised(module, target)))
    (folder / "main.c").write_text(PROGRAM)
    (folder / "memory").write_bytes(memory)
    program, memory_file = folder / "program", folder / "memory"
    words = [processor.compiler, "-O1", "-static", "-o", program, folder / "main.c", folder / "network.o"]
    subprocess.run(words, check=True)
    subprocess.run([*processor.emulator, program, memory_file, str(table)], check=True, timeout=60)
    buffers = aligned_part(workspace)
    buffers[:] = np.frombuffer(memory_file.read_bytes(), np.uint8)[: len(buffers)]
    return workspace.logits(len(images))


def aligned_part(workspace: Workspace) -> np.ndarray:
    """Return the memory of a workspace from its first buffer on."""
    return workspace._bytes[workspace.start - workspace._bytes.ctypes.data :]


def memory_image(plan: ExecutionPlan, workspace: Workspace, images: np.ndarray) -> tuple[bytes, int]:
    """Return the memory of a run, the workspace first, with all addresses from BASE on, and where its table is."""
    parts: list[bytes] = []
    size = 0

    def place(array: np.ndarray) -> int:
        nonlocal size
        address, content = BASE + size, array.tobytes()
        parts.append(content + bytes(-len(content) % 64))
        size += len(parts[-1])
        return address

    def value(argument: Any) -> int:
        if isinstance(argument, BufferAddress):
            return BASE + workspace.offsets[argument.buffer]
        return place(argument) if isinstance(argument, np.ndarray) else argument

    place(aligned_part(workspace))
    pictures, rows = place(images), []
    for i, step in enumerate(plan.steps):
        call = step.calls[0]
        values = [value(argument) for argument in call.arguments]
        if i == 0:
            values[0], values[3] = pictures, len(images)
        rows.append([place(np.array(values, np.int64)), call.first, call.last])
    table = place(np.array(rows, np.int64)) - BASE
    return b"".join(parts), table


@pytest.mark.parametrize(("name", "run"), covering([*PROCESSORS], RUNS))
def test_another_processor_computes_the_same_logits(
    name: str, run: tuple[Any, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, (planner, in_8_bits) = PROCESSORS[name], run
    for program in (processor.emulator[0], processor.compiler):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    monkeypatch.setenv("SPARSEMBLE_CACHE", str(tmp_path))
    network = small_network(in_8_bits=in_8_bits)
    lanes = processor.lanes
    images = np.random.default_rng(1).random((lanes if planner is BatchPlanner else 1, 3, 10, 8), np.float32)
    expected = Engine(network).run(images)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    kind = lambda width: processor.dot if width >= 4 else "plain"  # noqa: E731
    monkeypatch.setattr("sparsemble.runtime.compiler.integer_steps.dot_instructions", kind)
    fused = add_conversions(remove_dead_channels(fuse(network)))
    found = run_emulated(planner(fused, lanes), images, processor, tmp_path)
    assert np.array_equal(found, expected)
