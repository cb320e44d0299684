"""Gates: a run stops where what it has made predicts no better than chance, unless it is forced to go on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from sparsemble.api.selection import PoolRecord
from sparsemble.api.training import held_out_accuracy
from sparsemble.core.artifacts import Artifact
from sparsemble.core.config import from_dict
from sparsemble.core.errors import InputError
from sparsemble.core.results import ChanceLevel
from sparsemble.core.threat import as_fraction
from sparsemble.data.dataset import DataSource
from sparsemble.evaluation.statistics import chance_level
from sparsemble.pipeline.recipe import Recipe
from sparsemble.pipeline.stage import Stage, Task, dataset
from sparsemble.pipeline.stages.models import (
    HELD_OUT,
    EnsembleStage,
    LoadParentStage,
    ModelStage,
    PruneStage,
    SelectStage,
    TrainStage,
)

COLOURS = 3
LARGEST_EPS = 16 / 255
"""linf radius beyond which attacks change what a photograph shows."""


@final
@dataclass(frozen=True, kw_only=True)
class Gates:
    """Checks the finished parent, the pool of sub-models and the ensemble, by the numbers in their artifacts.

    Each must be above chance on held-out images, when clean and under attack: `evaluation.statistics.chance_level`. A
    parent that was trained elsewhere is not expected to be robust before it is fine-tuned.
    """

    folder: Path
    """Of the run."""
    force: bool
    """Whether the run goes on all the same."""
    report: Callable[[str], None]
    """Receives sentences for the user."""
    minutes: float | None = None
    """Of the run, where they decide the epochs."""
    checked: set[str] = field(default_factory=set)
    """Hashes of the tasks that were checked."""

    def check_images(self, recipe: Recipe) -> None:
        """Refuse, before any work, what cannot end well.

        Raises:
            InputError: held-out images that are too few to tell any network from chance, or an eps at which attacks
                change what photographs show; unless the run is forced.
        """
        if self.force:
            return
        data, threat = dataset(recipe.data), recipe.threat
        photographs = data.preprocessing is not None and data.shape[0] == COLOURS
        if photographs and threat.norm == "linf" and threat.eps > LARGEST_EPS:
            raise InputError(
                f"threat.eps = {as_fraction(threat.eps)} is above {as_fraction(LARGEST_EPS)}, where attacks change "
                "what photographs show (4/255 is usual); lower it, or use --force"
            )
        chance = _chance(recipe.data)
        if chance.least > chance.images:
            raise InputError(
                f"the half of the held-out images that chooses epochs has {chance.images}, too few to tell a network "
                "from chance; raise data.held_out, or use --force to run without that check"
            )

    def check_finished(self, missing: Sequence[Task]) -> None:
        """Check what the missing tasks read that is finished already: a run that was stopped stops again at once."""
        hashes = {task.hash for task in missing}
        for needed in (needed for task in missing for needed in task.inputs.values() if needed.hash not in hashes):
            self.check(needed)

    def check_inputs(self, task: Task) -> None:
        """Check what a task reads before it starts."""
        for needed in task.inputs.values():
            self.check(needed)

    def check(self, task: Task) -> None:
        """Refuse to go on from a finished task that made nothing of use.

        Raises:
            InputError: what it made is no better than chance, and the run is not forced.
        """
        if task.hash in self.checked:
            return
        self.checked.add(task.hash)
        verdict = self._verdict(task)
        if verdict and not self.force:
            raise InputError(f"{verdict}; --force goes on all the same, and what is finished is kept in {self.folder}")
        if verdict:
            self.report(f"{verdict}; the run goes on, as --force asks")

    def _verdict(self, task: Task) -> str:
        """Return a sentence on what is wrong with a finished task; an empty one where nothing is."""
        artifact = Artifact(self.folder / task.folder)
        match task.stage:
            case TrainStage(train=train):
                found = held_out_accuracy(artifact.json_lines("history.jsonl"), train.epochs)
                more = self._more_epochs("train.epochs", train.epochs)
                advice = f"{_smaller_eps(task.stage)}, {more} or more images"
                return self._failed("the dense parent", task.stage, found, f"try {advice}")
            case LoadParentStage():
                return self._loaded(task.stage, artifact.json(HELD_OUT))
            case SelectStage(members=members):
                record = from_dict(PoolRecord, artifact.json("select.json"), "select.json")
                return self._too_few(record, members, next(iter(task.inputs.values())).stage)
            case EnsembleStage(ensemble=settings):
                found = held_out_accuracy(artifact.json_lines("history.jsonl"), settings.epochs)
                advice = (
                    f"a lower learning rate (ensemble.schedule.learning_rate = {settings.schedule.learning_rate:g}), "
                    f"{self._more_epochs('ensemble.epochs', settings.epochs)} or {_smaller_eps(task.stage)}"
                )
                return self._failed("the trained ensemble", task.stage, found, f"try {advice}")
        return ""

    def _failed(self, what: str, stage: ModelStage, found: Mapping[str, Any] | None, advice: str) -> str:
        chance = _chance(stage.data)
        if found is None or all(_is_above(chance, found, kind) for kind in ("clean", "robust")):
            return ""
        kind = "is not robust" if _is_above(chance, found, "clean") else "has not learned the classes"
        return f"{what} {kind}: {_measured(found, chance)}; {advice}"

    def _loaded(self, stage: LoadParentStage, found: Mapping[str, Any]) -> str:
        chance = _chance(stage.data)
        if stage.finetune:
            more = self._more_epochs("parent.finetune_epochs", stage.finetune.epochs)
            return self._failed("the fine-tuned parent", stage, found, f"try {more} or {_smaller_eps(stage)}")
        if not _is_above(chance, found, "clean"):
            return (
                f"the given parent does not know the classes of {stage.data.name}: {_measured(found, chance)}; check "
                "that its classes are those of the data, in the same order, and how it expects images to be "
                "normalised (parent.mean, parent.std)"
            )
        if not _is_above(chance, found, "robust"):
            self.report(
                f"the given parent is not robust: {_measured(found, chance)}; its sub-models have to learn robustness "
                "while they are pruned and fine-tuned, so raise prune.finetune_epochs, or train the parent further "
                "first (parent.finetune_epochs = 0)"
            )
        return ""

    def _too_few(self, record: PoolRecord, members: int, pruned: Stage) -> str:
        sentence = record.too_few(members)
        if not sentence:
            return ""
        assert isinstance(pruned, PruneStage)
        more = self._more_epochs("prune.finetune_epochs", pruned.prune.finetune_epochs)
        sparsity = f"a lower sparsity (sub-models have {pruned.sparsity:.3g})"
        return f"{sentence}; try {sparsity}, {more} or {_smaller_eps(pruned)}"

    def _more_epochs(self, setting: str, epochs: int) -> str:
        """Name the epochs of a stage, and what decides them."""
        if self.minutes is None:
            return f"more epochs ({setting} = {epochs})"
        return f"more minutes (minutes = {self.minutes:g} gave {setting} = {epochs})"


def _chance(source: DataSource) -> ChanceLevel:
    """Return the level of chance on the held-out images that choose epochs and ensembles."""
    return chance_level(dataset(source).selection.labels.cpu().numpy())


def _is_above(chance: ChanceLevel, found: Mapping[str, Any], kind: str) -> bool:
    return chance.is_beaten(found[f"held_out_{kind}"])


def _measured(found: Mapping[str, Any], chance: ChanceLevel) -> str:
    return (
        f"of {chance.images} held-out images it classifies {100 * found['held_out_clean']:.1f} % correctly and "
        f"{100 * found['held_out_robust']:.1f} % under attack, where {chance}"
    )


def _smaller_eps(stage: ModelStage) -> str:
    return f"a smaller eps (threat.eps = {as_fraction(stage.threat.eps)})"
