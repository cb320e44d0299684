"""How many epochs, test images and channels fit into a number of minutes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sparsemble.core.config import from_dict, override
from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict
from sparsemble.data.dataset import Dataset
from sparsemble.pipeline.estimate import Throughput, Workload, graph_seconds, learning_epochs
from sparsemble.pipeline.graph import build_graph
from sparsemble.pipeline.recipe import Recipe

MARGIN = 0.95
"""Share of the minutes that is planned; measurements are never exact."""
START = 20.0
"""Seconds to start worker processes and to read the data."""
LARGEST_FACTOR = 3.0
"""On the recipe's epochs: more of them overfit, so a run that has time left ends earlier."""
LEAST_IMAGES = 50
"""Test images that are attacked, at least, where there are as many."""
ATTACKED = 0.3
"""Share of the time that attacks on the test images may take before fewer images are attacked."""
IMAGES_PER_WIDTH = 1250
"""Training images of a ResNet-18 of width 8; weights grow with the square of the width, and so must the images."""


class Choice(NamedTuple):
    """Settings that fit into the time, and the seconds that they are expected to take."""

    settings: tuple[str, ...]
    seconds: float
    factor: float
    """On the recipe's epochs."""


def width_limit(images: int) -> float:
    """Return the widest ResNet-18 that so many training images are enough for."""
    return 8 * math.sqrt(images / IMAGES_PER_WIDTH)


def possible_widths(recipe: Recipe, data: Dataset) -> tuple[int, ...]:
    """Return the widths to choose from: those for which there are enough images, at least the narrowest."""
    if not recipe.widths:
        return ()
    return tuple(w for w in recipe.widths if w <= width_limit(len(data.train))) or recipe.widths[:1]


def choose(
    recipe: Recipe, data: Dataset, throughputs: Mapping[int | None, Throughput], workers: int, spent: float = 0.0
) -> tuple[Choice, Throughput]:
    """Choose epochs, images and width: the widest network that gets the recipe's epochs, else the narrowest.

    Args:
        recipe: with `minutes`; its epochs are proportions, and its test images the most that are attacked.
        data: its images.
        throughputs: by the width of the network; of None, where it is not chosen.
        workers: processes that run side by side.
        spent: seconds that are over already.

    Raises:
        InputError: the time is too short for one epoch of each stage.
    """
    if recipe.evaluate.images > len(data.test):
        recipe = replace(recipe, evaluate=replace(recipe.evaluate, images=len(data.test)))
    choices = {
        width: fit(with_width(recipe, width), width, data, throughput, workers, spent)
        for width, throughput in throughputs.items()
    }
    enough = [width for width, choice in choices.items() if choice.factor >= 1]
    narrowest = min(throughputs, key=lambda width: width or 0)
    width = max(enough, key=lambda width: width or 0, default=narrowest)
    choice = choices[width]
    if choice.seconds > available_seconds(recipe, spent):
        least = math.ceil((choice.seconds + START + spent) / 60 / MARGIN)
        raise InputError(
            f"minutes = {recipe.minutes:g} is too few for one epoch of each stage on this machine; at least {least} "
            "would do"
        )
    return choice, throughputs[width]


def with_width(recipe: Recipe, width: int | None) -> Recipe:
    """Return a recipe whose network has a width; None: its own."""
    if width is None:
        return recipe
    model: Any = recipe.model
    return replace(recipe, model=replace(model, width=width))


def available_seconds(recipe: Recipe, spent: float) -> float:
    """Return the seconds that the stages of a run may take, when some are over already."""
    assert recipe.minutes is not None
    return 60 * MARGIN * recipe.minutes - START - spent


def fit(
    recipe: Recipe, width: int | None, data: Dataset, throughput: Throughput, workers: int, spent: float = 0.0
) -> Choice:
    """Return the largest factor on the epochs, and the most test images, that fit into the time; else the least.

    Args:
        recipe: with `minutes`, at the width.
        width: of the network; None where it is not chosen.
        data: its images.
        throughput: of this network.
        workers: processes that run side by side.
        spent: seconds that are over already.
    """
    available = available_seconds(recipe, spent)
    workload = Workload.of(recipe, data, throughput)
    images = _images(recipe, workload, workers, available)

    def at(factor: float) -> Choice:
        settings = (*_scaled(recipe, factor), f"evaluate.images={images}")
        if width is not None:
            settings += (f"model.width={width}",)
        tasks = build_graph(with_settings(recipe, settings), "", "").tasks
        return Choice(settings, graph_seconds(tasks, workers, workload), factor)

    low, high = _least_factor(recipe), LARGEST_FACTOR
    best = at(high)
    if best.seconds <= available:
        return best
    best = at(low)
    if best.seconds > available:
        return best
    for _ in range(8):
        middle = math.sqrt(low * high)
        tried = at(middle)
        if tried.seconds <= available:
            low, best = middle, tried
        else:
            high = middle
    return best


def _epochs(recipe: Recipe) -> dict[str, int]:
    """Return every number of epochs of a recipe, by its setting."""
    epochs = {
        "train.epochs": recipe.train.epochs,
        "parent.finetune_epochs": recipe.parent.finetune_epochs if recipe.parent else 0,
        "prune.method.epochs": learning_epochs(recipe.prune.method),
        "prune.finetune_epochs": recipe.prune.finetune_epochs,
        "ensemble.epochs": recipe.ensemble.epochs,
    }
    return {name: count for name, count in epochs.items() if count}


def _scaled(recipe: Recipe, factor: float) -> tuple[str, ...]:
    return tuple(f"{name}={max(1, round(factor * epochs))}" for name, epochs in _epochs(recipe).items())


def _least_factor(recipe: Recipe) -> float:
    """Return the factor that leaves one epoch of each stage."""
    return 1 / max(_epochs(recipe).values())


def _images(recipe: Recipe, workload: Workload, workers: int, available: float) -> int:
    """Return how many test images can be attacked in their share of the time."""
    most = recipe.evaluate.images or workload.test
    least = min(LEAST_IMAGES, most)
    tasks = [task for task in build_graph(recipe, "", "").tasks if task.stage.name in ("attack", "evaluate", "curve")]
    seconds = sum(map(workload.seconds, tasks)) / workers
    return min(most, max(least, 10 * int(most * ATTACKED * available / seconds / 10)))


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Return a recipe with settings as after --set, and without a number of minutes."""
    return replace(from_dict(Recipe, override(to_dict(recipe), settings)), minutes=None, widths=None)
