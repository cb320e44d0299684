"""Whether a recipe fits its data set, and the runtime its networks: checked before any work."""

from collections.abc import Sequence

from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict
from sparsemble.data.dataset import Dataset
from sparsemble.ensemble.losses.dverge import DVERGE, feature_layers
from sparsemble.export.quantize import stored_in_8_bits
from sparsemble.models.convert import convert_model
from sparsemble.models.graph import Graph
from sparsemble.models.plain_network import check_masks_hold, check_training_output
from sparsemble.pipeline.recipe import Recipe
from sparsemble.pipeline.stage import dataset
from sparsemble.pipeline.stages.models import load_parent
from sparsemble.pruning.target import SparsityTarget
from sparsemble.runtime.combiners import build_combiner
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.stopping import build_rule
from sparsemble.training import distributed
from sparsemble.training.loss import nested_losses

ADVICE = "change it, or run `sparsemble evaluate`, which ends before the ensemble is timed in the runtime and exported"


def validate_recipe(
    recipe: Recipe,
    sparsities: Sequence[float] = (),
    *,
    deploys: bool = True,
    checked: dict[str, Graph] | None = None,
) -> None:
    """Refuse a recipe that asks for what its data set or its network cannot give.

    Args:
        recipe: the settings.
        sparsities: of the models that are pruned; that of the members unless given.
        deploys: whether the runtime will run the networks.
        checked: networks of other recipes that passed, by what their checks depend on; receives that of this one.
    """
    data = dataset(recipe.data)
    graphs = {} if checked is None else checked
    dverge = any(isinstance(part, DVERGE) and part.beta for part in nested_losses(recipe.ensemble.loss))
    key = repr((recipe.model, recipe.parent, data.shape, len(data.classes), deploys, recipe.export.arithmetic, dverge))
    if key not in graphs:
        model = load_parent(recipe.model, recipe.parent, data)
        check_masks_hold(model, data.shape)
        check_training_output(model, data.shape, len(data.classes))
        if deploys:
            check_deployable(model, data.shape, recipe.export.arithmetic)
            if dverge:
                feature_layers(model)
        graphs[key] = Graph(model, data.shape)
    _check_held_out(data)
    if deploys:
        _check_runtime_components(recipe)
    for sparsity in sparsities or (recipe.member_sparsity,):
        settings = {name: getattr(recipe.prune, name) for name in ("granularity", "budget", "rates", "floor")}
        SparsityTarget(graph=graphs[key], sparsity=sparsity, **settings)  # refuses what cannot be reached
    _check_sizes(recipe, data)


def _check_runtime_components(recipe: Recipe) -> None:
    """Refuse a combiner or a stopping rule that the runtime does not have, such as one in a file of the user."""
    for setting, component, build in (
        ("ensemble.combiner", recipe.ensemble.combiner, build_combiner),
        ("stopping.rule", recipe.stopping.rule, build_rule),
    ):
        if component.source_file:
            raise InputError(f"{setting}: the runtime does not have {component.source_file}; {ADVICE}")
        try:
            build(to_dict(component))
        except RuntimeInputError as error:
            raise InputError(f"{setting}: the runtime cannot run it, {error}; {ADVICE}") from None


def _check_sizes(recipe: Recipe, data: Dataset) -> None:
    """Refuse folds, batches and test images that the data set is too small for."""
    folds = recipe.prune.folds
    rarest = int(data.train.labels.bincount(minlength=len(data.classes)).min())
    if folds > rarest:
        raise InputError(
            f"prune.folds = {folds} is more than the {rarest} training images of the rarest class; lower it"
        )
    images = len(data.train)
    processes = distributed.world_size()
    for name, size, available in (
        ("train", recipe.train.schedule.batch_size, images),
        ("prune", recipe.prune.schedule.batch_size, images if folds == 1 else 2 * (images // folds)),
        ("ensemble", recipe.ensemble.schedule.batch_size, images),
    ):
        setting = f"{name}.schedule.batch_size = {size}"
        if size > available:
            raise InputError(f"{setting} is more than the {available} images it trains on")
        if size % processes:
            raise InputError(f"{setting} cannot be divided among {processes} processes; set a multiple of that number")
    if recipe.evaluate.images > len(data.test) and recipe.minutes is None:  # else fewer are chosen
        raise InputError(f"evaluate.images = {recipe.evaluate.images} is more than the {len(data.test)} test images")


def _check_held_out(data: Dataset) -> None:
    """Refuse held-out halves with fewer than two classes, on which nothing can be compared."""
    halves = (("chooses epochs and ensembles", data.selection), ("calibrates the stopping rule", data.calibration))
    for use, half in halves:
        classes = len(half.labels.unique())
        if classes < 2:
            raise InputError(
                f"the half of the held-out images that {use} has {len(half)} images of {classes} classes and needs at "
                "least two classes; raise data.held_out"
            )


def check_deployable(model: nn.Module, shape: tuple[int, int, int], arithmetic: str = "float32") -> None:
    """Convert a network, trained or not, for the runtime, which compares the logits.

    Args:
        model: any network.
        shape: channels, height and width of an image.
        arithmetic: float32 or int8.
    """
    try:
        network = convert_model(model, shape)
        if arithmetic == "int8":
            stored_in_8_bits(network)
    except (InputError, RuntimeInputError) as error:
        raise InputError(f"{error}; {ADVICE}") from None
