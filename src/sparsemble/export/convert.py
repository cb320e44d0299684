"""Convert trained ensembles to packed ones."""

from collections.abc import Mapping
from typing import Any

from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.registry import to_dict
from sparsemble.models.convert import convert_model
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.images import Preprocessing


def convert_ensemble(
    ensemble: Ensemble,
    rule: StoppingRule,
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    parent_weights: int,
    *,
    preprocessing: Preprocessing | None = None,
    **metadata: Mapping[str, Any],
) -> PackedEnsemble:
    """Convert a trained ensemble.

    Args:
        ensemble: members in running order, in eval mode.
        rule: the stopping rule.
        classes: names, K of them.
        shape: channels, height and width of an image.
        parent_weights: prunable weights of the dense parent.
        preprocessing: how the training images were made of files; None: they were arrays.
        **metadata: `recipe` and `provenance`, for the file.

    Raises:
        InputError: an operation that the runtime does not know; the message names the module.
    """
    return PackedEnsemble(
        members=tuple(convert_model(member, shape) for member in ensemble.members),
        combiner=to_dict(ensemble.combiner),
        rule=to_dict(rule),
        classes=tuple(classes),
        parent_weights=parent_weights,
        preprocessing=preprocessing,
        **metadata,
    )
