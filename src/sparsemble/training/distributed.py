"""Data-parallel training under `torchrun`: each process computes its slice of every batch, gradients are averaged.

This does not use torch's DistributedDataParallel, which averages in the backward pass of a wrapped model's forward
pass: our losses call members, features and inner losses directly. Gradients are averaged once, after the backward pass;
steps of attacks do not synchronise. With a single process every function returns its argument.
"""

import contextlib
import datetime
import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from sparsemble.core.module_state import NORMS

TIMEOUT = datetime.timedelta(days=7)
"""Longest wait for another process, which may be running a stage of its own."""


def start(device: str) -> str:
    """Join the process group and return the device of this process: of `cuda`, the GPU of its local rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # not one of several that torchrun started
        return device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    return device


def stop() -> None:
    """Leave the process group after a barrier."""
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every process."""
    sum_over_processes([0])


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@torch.no_grad()
def average_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their mean over the processes, with one all-reduce for each dtype."""
    if world_size() == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        dist.all_reduce(flat)
        flat /= world_size()
        for tensor, mean in zip(same, flat.split([t.numel() for t in same]), strict=True):
            tensor.copy_(mean.view(tensor.shape))


def mean_over_processes(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the means of scalars over the processes, by name."""
    if world_size() == 1:
        return terms
    means = {name: term.detach().clone() for name, term in terms.items()}
    average_(list(means.values()))
    return means


def average_gradients_(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of the parameters that have one."""
    average_([parameter.grad for parameter in parameters if parameter.grad is not None])


def sum_over_processes(counts: Sequence[int]) -> list[int]:
    """Return the sums of integers over the processes."""
    if world_size() == 1:
        return list(counts)
    sums = torch.tensor(counts, dtype=torch.int64, device=_exchange_device())
    dist.all_reduce(sums)
    return [int(count) for count in sums]


def broadcast_generator_(rng: torch.Generator) -> None:
    """Set every process's generator to the state of the first."""
    if world_size() > 1:
        state = broadcast_bytes(rng.get_state().numpy().tobytes())
        rng.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def broadcast_bytes(content: bytes) -> bytes:
    """Return the first process's bytes in every process."""
    if world_size() == 1:
        return content
    length = torch.tensor([len(content)], device=_exchange_device())
    dist.broadcast(length, 0)
    buffer = torch.zeros(int(length), dtype=torch.uint8, device=_exchange_device())
    if rank() == 0 and content:
        buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(buffer, 0)
    return buffer.cpu().numpy().tobytes()


def broadcast_value(value: Any) -> Any:
    """Return the first process's value, which must be JSON, in every process."""
    return value if world_size() == 1 else json.loads(broadcast_bytes(json.dumps(value).encode()))


def _exchange_device() -> torch.device:
    """Return the device of tensors that the backend can exchange."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


@torch.no_grad()
def broadcast_model_(model: nn.Module) -> None:
    """Set every process's weights and statistics to those of the first."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            contiguous = tensor.contiguous()
            dist.broadcast(contiguous, 0)
            tensor.copy_(contiguous)


@contextlib.contextmanager
def synchronised_batchnorm(model: nn.Module) -> Iterator[None]:
    """Make BatchNorm in train mode use the statistics of the whole batch, over all processes, while open."""
    norms = [module for module in model.modules() if isinstance(module, NORMS)] if world_size() > 1 else []
    for norm in norms:
        norm.forward = functools.partial(_batch_norm, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _batch_norm(norm: Any, x: Tensor) -> Tensor:
    if not (norm.training or norm.running_mean is None):
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    axes = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    full = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    count = world_size() * x.numel() // x.shape[1]
    mean = all_reduce(full.sum(axes)) / count
    centred = full - mean.view(shape)
    variance = all_reduce(centred.square().sum(axes)) / count
    if norm.track_running_stats and norm.training:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean, momentum)
            norm.running_var.lerp_(variance * (count / (count - 1)), momentum)
    normal = centred * (variance.view(shape) + norm.eps).rsqrt()
    if norm.affine:
        normal = normal * norm.weight.view(shape) + norm.bias.view(shape)
    output: Tensor = normal.to(x.dtype)
    return output
