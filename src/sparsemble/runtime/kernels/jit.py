"""Compile kernels for this processor, and cache the machine code on disk."""

import contextlib
import ctypes
import functools
import hashlib
import importlib.resources
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from sparsemble.runtime.kernels.dot_product import Dot
from sparsemble.runtime.kernels.llvm_builder import Kernel

FUNCTION_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def processor() -> tuple[str, str]:
    """Return LLVM's name and features of this processor."""
    _initialise()
    features = llvm.get_host_cpu_features()
    return llvm.get_host_cpu_name(), features.flatten()


def lanes() -> int:
    """Return the number of floats in a vector register of this processor; 1 where it has none that is supported."""
    _initialise()
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        return 16
    if features.get("avx2") and features.get("fma"):
        return 8
    return 4 if features.get("neon") else 1


def registers() -> int:
    """Return the number of vector registers."""
    return 32 if lanes() in (16, 4) else 16


def dot_instructions(lanes: int) -> Dot:
    """Return the instructions by which this processor adds 8-bit products, for vectors of so many int32."""
    _initialise()
    features = llvm.get_host_cpu_features()
    vnni = (features.get("avx512vnni") and features.get("avx512vl")) or (features.get("avxvnni") and lanes < 16)
    if lanes >= 4 and vnni:
        return "vnni"
    if lanes >= 4 and features.get("avx2") and (lanes < 16 or features.get("avx512bw")):
        return "maddwd"
    if lanes == 4 and features.get("neon") and llvm.get_default_triple().startswith(("aarch64", "arm64")):
        return "sdot" if features.get("dotprod") else "saddlp"
    return "plain"


@final
class JITKernels:
    """Compiled functions by name; cached in the folder, if there is one that can be written."""

    def __init__(self, kernels: Mapping[str, Kernel], folder: Path | None) -> None:
        _initialise()
        name, features = processor()
        key = repr(
            (llvmlite.__version__, name, features, code_digest(), sorted((n, repr(k)) for n, k in kernels.items()))
        )
        digest = hashlib.sha256(key.encode()).hexdigest()
        file = folder / f"{digest}.object" if folder else None
        target = llvm.Target.from_default_triple().create_target_machine(
            # By default LLVM avoids the widest registers on some processors.
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

    def function(self, name: str) -> Any:
        """Return a function of (arguments, first, last), which is valid as long as this object."""
        return FUNCTION_TYPE(self._engine.get_function_address(name))


@functools.cache
def code_digest() -> str:
    """Return a digest of the code that plans and compiles: part of the key of everything that is cached."""
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
    options.loop_unrolling = False  # loops are short and use most registers already
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(parsed, builder)
    return parsed


def read_checked(file: Path | None) -> bytes | None:
    """Return the content of a cached file; None if it is missing or its checksum does not match."""
    if file is None:
        return None
    try:
        content = file.read_bytes()
    except OSError:
        return None
    checksum, stored = content[:32], content[32:]
    return stored if hashlib.sha256(stored).digest() == checksum else None


def write_checked(file: Path | None, stored: bytes) -> None:
    """Write a cached file with its checksum, atomically; nothing is written where the folder cannot be written."""
    if file is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
            temporary.write(hashlib.sha256(stored).digest() + stored)
        Path(temporary.name).replace(file)


@functools.cache
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
