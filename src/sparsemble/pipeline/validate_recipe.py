"""Whether a recipe fits its data set: asked before any work."""

from collections.abc import Sequence

from sparsemble.core.errors import InputError
from sparsemble.data.dataset import Dataset
from sparsemble.ensemble.losses.dverge import DVERGE, feature_layers
from sparsemble.models.graph import Graph
from sparsemble.pipeline.check_export import check_deployable
from sparsemble.pipeline.recipe import Recipe
from sparsemble.pipeline.stage import dataset
from sparsemble.pipeline.stages.models import load_parent
from sparsemble.training import distributed
from sparsemble.training.loss import nested_losses


def check_against_data(recipe: Recipe, sparsities: Sequence[float] = (), *, deploys: bool = True) -> None:
    """Refuse, before any work, what the recipe asks of its data set and cannot have.

    Args:
        recipe: the settings.
        sparsities: of the models that are pruned; that of the members unless given.
        deploys: whether the runtime will run the networks.

    Raises:
        InputError: naming the setting.
    """
    data = dataset(recipe.data)
    model = load_parent(recipe.model, recipe.parent, data)
    graph = Graph(model, data.shape)
    check_held_out(data)
    if deploys:
        check_deployable(model, data.shape)
        if any(isinstance(part, DVERGE) and part.beta for part in nested_losses(recipe.ensemble.loss)):
            feature_layers(model)
    for sparsity in sparsities or (recipe.member_sparsity,):
        recipe.prune.target(graph, sparsity)
    shares = recipe.prune.folds
    rarest = int(data.train.labels.bincount(minlength=len(data.classes)).min())
    if shares > rarest:
        raise InputError(
            f"prune.folds = {shares} is more than the {rarest} training images of the rarest class; lower it"
        )
    smallest = len(data.train) if shares == 1 else 2 * (len(data.train) // shares)
    for name, size, images in (
        ("train", recipe.train.schedule.batch_size, len(data.train)),
        ("prune", recipe.prune.schedule.batch_size, smallest),
        ("ensemble", recipe.ensemble.schedule.batch_size, len(data.train)),
    ):
        if size > images:
            raise InputError(f"{name}.schedule.batch_size = {size} is more than the {images} images it trains on")
        if size % distributed.world_size():
            raise InputError(
                f"{name}.schedule.batch_size = {size} cannot be divided among {distributed.world_size()} processes; set a "
                "multiple of that number"
            )
    if recipe.evaluate.images > len(data.test):
        raise InputError(f"evaluate.images = {recipe.evaluate.images} is more than the {len(data.test)} test images")


def check_held_out(data: Dataset) -> None:
    """Refuse held-out images that cannot tell anything apart.

    Raises:
        InputError: one half of them has fewer than two classes.
    """
    for part, use in (
        (data.selection, "chooses epochs and ensembles"),
        (data.calibration, "calibrates the stopping rule"),
    ):
        classes = len(part.labels.unique())
        if classes < 2:
            raise InputError(
                f"the half of the held-out images that {use} has {len(part)} images of {classes} classes and needs at "
                "least two classes; raise data.held_out"
            )
