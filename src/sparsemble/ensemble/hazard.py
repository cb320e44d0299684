"""What stopping rules look at: how sure and how settled the average of the members so far is."""

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sparsemble.core.types import Counts, MemberLogits

SMALLEST = 1e-12

PerPrefix = Float[Tensor, "M B"]
"""One number for each prefix of the ensemble and each image."""


def averages(member_logits: MemberLogits) -> Float[Tensor, "M B K"]:
    """Return the mean probabilities of the first 1..M members."""
    probabilities = member_logits.softmax(-1)
    counts = torch.arange(1, len(probabilities) + 1, device=probabilities.device).view(-1, 1, 1)
    return probabilities.cumsum(0) / counts


def confidence_and_change(member_logits: MemberLogits) -> tuple[PerPrefix, Float[Tensor, "rest B"]]:
    """Return C_1..C_M, the square of the highest average probability, and U_2..U_M, the KL from average to average.

    Source: EED supplement, eqs. 29-30, in the form of method.md 2.7.
    """
    average = averages(member_logits)
    log_average = average.clamp_min(SMALLEST).log()
    change = (average[1:] * (log_average[1:] - log_average[:-1])).sum(-1)
    return average.amax(-1).square(), change


def hazards(member_logits: MemberLogits, *, a: float, b: float, tau_u: float, tau_c: float) -> PerPrefix:
    """Return q_1..q_M = sigmoid(-a (U_t - tau_u) + b (C_t - tau_c)), without the U term at t = 1."""
    confidence, change = confidence_and_change(member_logits)
    doubt = torch.cat([torch.zeros_like(confidence[:1]), a * (change - tau_u)])
    return torch.sigmoid(b * (confidence - tau_c) - doubt)


def masses(hazard: PerPrefix) -> tuple[PerPrefix, Float[Tensor, " B"]]:
    """Return z_t = q_t S(t) with S(t + 1) = S(t) - z_t, and what survives the last step."""
    found = []
    survival = torch.ones_like(hazard[0])
    for one in hazard:
        found.append(one * survival)
        survival = survival - found[-1]
    return torch.stack(found), survival


def whole(stop_probability: PerPrefix, rest: Float[Tensor, " B"]) -> PerPrefix:
    """Give the last step what survived it."""
    return torch.cat([stop_probability[:-1], (stop_probability[-1] + rest).unsqueeze(0)])


def leaning(answer_with: Counts, hazard: PerPrefix) -> PerPrefix:
    """Return a mass that is largest at the prefix that answers, and follows soft hazards in its other half.

    A rule that compares with a threshold gives an attacker no gradient; this is what it climbs instead.
    """
    hard = torch.zeros_like(hazard).scatter(0, (answer_with - 1)[None], 1.0)
    return (hard + whole(*masses(hazard))) / 2


def first(passed: Tensor) -> Counts:
    """Return the first of m steps at which an image passed (m, B), from 1; m where none did."""
    steps = torch.arange(1, len(passed) + 1, device=passed.device)[:, None]
    found: Counts = torch.where(passed, steps, len(passed)).amin(0)
    return found


def quantiles(values: Tensor, shares: Tensor) -> list[float]:
    """Return quantiles of all values, each once, rising; none of no values."""
    return sorted(set(values.flatten().quantile(shares.to(values.dtype)).tolist())) if values.numel() else []


def hazard_settings(member_logits: MemberLogits, tau_u: float) -> Iterator[tuple[float, float, float, float]]:
    """Return settings (a, b, tau_u, tau_c) worth trying, thresholds at quantiles of what held-out images show."""
    confidence, change = confidence_and_change(member_logits)
    shares = torch.linspace(0.02, 0.9, 12, device=change.device)
    # Most clean images are beyond doubt: the cheap rules are those that look twice at one in a hundred.
    few = torch.tensor([0.0, 0.003, 0.007, 0.012], device=change.device)
    return itertools.product(
        (4.0, 32.0),
        (8.0, 32.0, 128.0),
        quantiles(change, shares[::4]) or [tau_u],
        quantiles(confidence[0], torch.cat([few, shares])),
    )
