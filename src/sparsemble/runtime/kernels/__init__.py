"""Kernels as LLVM IR, compiled for this processor and cached on disk."""
