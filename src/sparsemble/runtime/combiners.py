"""Combiners in numpy, equal to those of `ensemble/combiners`: from member logits to log-probabilities."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.errors import RuntimeInputError

Logits = NDArray[Any]
"""(B, K), or (m, B, K) of the first m members; float32 or float64."""
Combiner = Callable[[Logits], Logits]
"""From (m, B, K) to log-probabilities (B, K)."""


def log_softmax(logits: Logits) -> Logits:
    """Return log-probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities: Logits = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_probabilities


def _log_mean_exp(values: Logits) -> Logits:
    """Return the log of the mean of exponentials over the first axis."""
    highest = values.max(0)
    result: Logits = np.log(np.exp(values - highest).mean(0)) + highest
    return result


def mean_probability(logits: Logits) -> Logits:
    """Return the log of the mean probability."""
    return _log_mean_exp(log_softmax(logits))


def build_combiner(settings: Mapping[str, Any]) -> Combiner:
    """Return a combiner from its name and settings.

    Raises:
        RuntimeInputError: an unknown name, or a setting that is unknown or out of range.
    """
    name, options = settings.get("name"), {key: value for key, value in settings.items() if key != "name"}
    if name == "soft_vote":
        temperature = options.pop("temperature", 0.5)
        if not isinstance(temperature, int | float) or not 0 < temperature <= 1:
            raise RuntimeInputError(f"temperature = {temperature!s:.60} must be above 0 and at most 1")
    if options:
        raise RuntimeInputError(f'combiner "{name!s:.60}" has no setting "{next(iter(options)):.60}"')
    by_name: dict[Any, Combiner] = {
        "mean_probability": mean_probability,
        "mean_logit": lambda logits: log_softmax(logits.mean(0)),
        "maximum": lambda logits: log_softmax(log_softmax(logits).max(0)),
        "soft_vote": lambda logits: _log_mean_exp(log_softmax(logits / temperature)),
    }
    if not isinstance(name, str) or name not in by_name:
        raise RuntimeInputError(f'combiner "{name!s:.60}" is not known; known are {", ".join(by_name)}')
    return by_name[name]
