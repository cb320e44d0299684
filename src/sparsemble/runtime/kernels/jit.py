"""From LLVM to callable machine code, kept on disk under what it was made from."""

import contextlib
import functools
import hashlib
import importlib.resources
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import final

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from sparsemble.runtime.kernels.llvm_builder import Kernel

_LOCK = threading.Lock()
_READY: list[bool] = []


def processor() -> tuple[str, str]:
    """Return name and features of this processor, as LLVM calls them."""
    _start()
    features = llvm.get_host_cpu_features()
    return llvm.get_host_cpu_name(), features.flatten()


def lanes() -> int:
    """Return how many floats a vector register of this processor holds; 1 where we know none."""
    _start()
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        return 16
    if features.get("avx2") and features.get("fma"):
        return 8
    return 4 if features.get("neon") else 1


def registers() -> int:
    """Return how many vector registers there are."""
    return 32 if lanes() in (16, 4) else 16


def cache_folder() -> Path:
    """Return where compiled code is kept: SPARSEMBLE_CACHE, or sparsemble in the user's cache folder."""
    asked = os.environ.get("SPARSEMBLE_CACHE")
    if asked:
        return Path(asked)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "sparsemble"


@final
class JITKernels:
    """Functions of this process, by name; keeps their code alive.

    Args:
        kernels: what to compile; equal kernels become one function.
        folder: where compiled objects are kept; none: nowhere. One that cannot be written is done without.
    """

    def __init__(self, kernels: Mapping[str, Kernel], folder: Path | None) -> None:
        _start()
        name, features = processor()
        key = repr(
            (llvmlite.__version__, name, features, code_digest(), sorted((n, repr(k)) for n, k in kernels.items()))
        )
        digest = hashlib.sha256(key.encode()).hexdigest()
        file = folder / f"{digest}.object" if folder else None
        target = llvm.Target.from_default_triple().create_target_machine(
            # Wide registers are what this is for; LLVM shuns them by default on some processors.
            cpu=name,
            features=features + ",-prefer-256-bit",
            opt=3,
        )
        stored = read_checked(file)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        if stored is None:
            stored = target.emit_object(_optimised(_module(kernels), target))
            write_checked(file, stored)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(stored))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Return where a function lies."""
        found: int = self._engine.get_function_address(name)
        return found


@functools.cache
def code_digest() -> str:
    """Return a digest of the code that plans networks and writes kernels: what another version kept is not ours."""
    digest = hashlib.sha256()
    for folder in ("compiler", "kernels"):
        for file in sorted(
            importlib.resources.files(f"sparsemble.runtime.{folder}").iterdir(), key=lambda file: file.name
        ):
            if file.name.endswith(".py"):
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _module(kernels: Mapping[str, Kernel]) -> ir.Module:
    module = ir.Module("kernels")
    module.triple = llvm.get_default_triple()
    for name, kernel in kernels.items():
        kernel.write(module, name)
    return module


def _optimised(module: ir.Module, target: llvm.TargetMachine) -> llvm.ModuleRef:
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False  # loops are short, and full of registers as they are
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(parsed, builder)
    return parsed


def read_checked(file: Path | None) -> bytes | None:
    """Return what was stored with its checksum right; none else."""
    if file is None:
        return None
    try:
        content = file.read_bytes()
    except OSError:
        return None
    checksum, stored = content[:32], content[32:]
    return stored if hashlib.sha256(stored).digest() == checksum else None


def write_checked(file: Path | None, stored: bytes) -> None:
    """Write beside the place and rename it; a folder that cannot be written is done without."""
    if file is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as beside:
            beside.write(hashlib.sha256(stored).digest() + stored)
        Path(beside.name).replace(file)


def _start() -> None:
    with _LOCK:
        if not _READY:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            _READY.append(True)
