"""The recipe of a whole run: what `sparsemble run` reads."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, final

from sparsemble.api.calibration import RULE_ATTACKS
from sparsemble.api.training import HELD_OUT_ATTACK
from sparsemble.attacks.attack import Attack
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.suite import BLACK_BOX, GRADIENT
from sparsemble.attacks.pgd import PGD
from sparsemble.core.argument_checks import checked_seed
from sparsemble.core.artifacts import file_hash
from sparsemble.core.config import from_dict, nearest, override, parse_toml, read_toml
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, StoppingRule
from sparsemble.core.source_file import files_beside
from sparsemble.core.threat import ThreatModel
from sparsemble.data.dataset import DataSource
from sparsemble.ensemble.selection.robust_diversity import RobustDiversity
from sparsemble.ensemble.selection.rule import SelectionRule
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.export.quantize import values_for
from sparsemble.models.architecture import Architecture
from sparsemble.pruning.budget import Budget
from sparsemble.pruning.budgets.weights import Weights
from sparsemble.pruning.granularities.weight import Weight
from sparsemble.pruning.granularity import Granularity
from sparsemble.pruning.layer_rates import LayerRates
from sparsemble.pruning.method import PruningMethod
from sparsemble.pruning.rates.uniform import Uniform
from sparsemble.pruning.score import PruningScore
from sparsemble.training.loss import TrainingLoss, nested_losses
from sparsemble.training.precision import Precision
from sparsemble.training.schedule import Schedule


@final
@dataclass(frozen=True, kw_only=True)
class Train:
    """Adversarial training of the dense parent."""

    epochs: int
    """Passes over the training images, >= 1."""
    loss: TrainingLoss
    schedule: Schedule
    eval_every: int = 1
    """Measure held-out accuracy each so many epochs; the best measured epoch of the second half is kept."""

    def __post_init__(self) -> None:
        _at_least_one(epochs=self.epochs, eval_every=self.eval_every)


@final
@dataclass(frozen=True, kw_only=True)
class Parent:
    """A classifier that was trained elsewhere and takes the place of the dense parent; `train` is for baselines.

    With `finetune_epochs` it is trained further first, with the loss and the schedule of `train`: a network that was
    never trained adversarially has no robustness that pruning could keep.
    """

    weights: str = ""
    """A file of weights for `model` (.safetensors, .pt or .pth); empty: those with which `model` makes its network."""
    mean: tuple[float, ...] = ()
    """Of each channel, by which `weights` expect their images normalised; empty: as the file says."""
    std: tuple[float, ...] = ()
    finetune_epochs: int = 0
    """Epochs of adversarial training before it is pruned, >= 0."""
    weights_hash: str = ""
    """sha256 of the file, filled in."""

    def __post_init__(self) -> None:
        if self.finetune_epochs < 0:
            raise InputError(f"parent.finetune_epochs = {self.finetune_epochs} must be 0 or more")
        if not self.weights:
            return
        if not Path(self.weights).is_file():
            raise InputError(f"parent.weights = {self.weights} does not exist")
        weights_hash = file_hash(Path(self.weights))
        if self.weights_hash not in ("", weights_hash):
            raise InputError(f"parent.weights = {self.weights} was changed since this run began with it")
        object.__setattr__(self, "weights_hash", weights_hash)


@final
@dataclass(frozen=True, kw_only=True)
class Prune:
    """From the dense parent to a pool of sparse sub-models, one for each score and data fold."""

    method: PruningMethod
    scores: tuple[PruningScore, ...]
    """The paper's four: nis, erm, ase, bnsf."""
    folds: int = 4
    """d: folds of the training images; d - 1 sub-models a score, each seeing 2/d of them (1: no split)."""
    granularity: Granularity = Weight()
    budget: Budget = Weights()
    """What sparsity is a fraction of: weights, or multiply-accumulates."""
    rates: LayerRates = Uniform()
    """How the budget is divided among layers, where the method does not learn it."""
    floor: float = 0.1
    """Least keep rate of a layer, as a fraction of the whole network's, in [0, 1)."""
    finetune_epochs: int
    """Passes over its images that each sub-model trains after its mask is fixed, >= 0."""
    loss: TrainingLoss
    schedule: Schedule
    """Of the fine-tuning; its batch size also holds while masks are learned."""

    def __post_init__(self) -> None:
        _at_least_one(folds=self.folds)
        if self.finetune_epochs < 0:
            raise InputError(f"finetune_epochs = {self.finetune_epochs} must be 0 or more")
        if not self.scores:
            raise InputError("scores is empty; name at least one, such as nis, erm, ase, bnsf")
        if len({score.name for score in self.scores}) < len(self.scores):
            raise InputError(f"scores names one twice: {', '.join(score.name for score in self.scores)}")

    @property
    def pool(self) -> tuple[tuple[PruningScore, int], ...]:
        """The sub-models: score and number of the fold, counted from 1."""
        return tuple((score, j) for score in self.scores for j in range(1, max(self.folds, 2)))


@final
@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Ensemble learning of the selected ensemble, on all training images, with masks held."""

    combiner: Combiner
    loss: TrainingLoss
    epochs: int
    """Passes over the training images, >= 1."""
    schedule: Schedule

    def __post_init__(self) -> None:
        _at_least_one(epochs=self.epochs)


@final
@dataclass(frozen=True, kw_only=True)
class Stopping:
    """The stopping rule and how it is set."""

    rule: StoppingRule = DIE()
    """Its settings are where calibration starts."""
    max_accuracy_drop: float = 0.002
    """Accuracy that stopping early may cost on held-out images, clean, in the worst case (there at least one image)
    and on average over all attacks."""
    attacked_share: float = 0.0
    """How much of the cost that is made small is that under attack, in [0, 1]; the rest is that on clean images."""
    reorder: bool = True
    """Choose which member runs first, too."""
    against: tuple[EnsembleAttack, ...] = RULE_ATTACKS
    """Attacks on the rule itself that it is set against."""
    rounds: int = 1
    """How often the rule is attacked and set anew, >= 0."""

    def __post_init__(self) -> None:
        for name in ("max_accuracy_drop", "attacked_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} = {getattr(self, name):g} must lie in [0, 1]")
        if self.rounds < 0:
            raise InputError(f"rounds = {self.rounds} must be 0 or more")
        labels = [attack.label for attack in self.against]
        if len(set(labels)) < len(labels):
            raise InputError(f"stopping.against has two attacks labelled {max(labels, key=labels.count)}; label one")


@final
@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The one final measurement, on test images."""

    attacks: tuple[Attack, ...] = (PGD(steps=20), PGD(steps=50, step_size=0.1, restarts=2), AutoAttack())
    """Run on every row."""
    adaptive: Attack = GRADIENT
    """Run through every differentiable view of the ensemble: members, combiners, prefixes, its expected prediction."""
    black_box: tuple[Attack, ...] = BLACK_BOX
    """Run on the deployed decision of the dynamic ensemble."""
    images: int = 0
    """Test images, drawn stratified; 0 means all."""
    curve_eps: tuple[float, ...] = ()
    """Radii of the security curve, ascending from 0; empty: none is drawn."""
    curve_images: int = 200
    """Test images of the security curve, drawn stratified."""
    curve_attack: Attack = PGD(steps=20, step_size=0.1)

    def __post_init__(self) -> None:
        labels = [attack.label for attack in self.attacks]
        if not labels or len(set(labels)) < len(labels):
            raise InputError(f"attacks must have different labels, got {labels}; set label on one of them")
        if self.images < 0 or self.curve_images < 1:
            raise InputError(
                f"images = {self.images} must be 0 (all) or more, curve_images = {self.curve_images} 1 or more"
            )
        if list(self.curve_eps) != sorted(set(self.curve_eps)) or (self.curve_eps and self.curve_eps[0] != 0):
            raise InputError(f"curve_eps must rise from 0, got {list(self.curve_eps)}")


@final
@dataclass(frozen=True, kw_only=True)
class Export:
    """The files that a run leaves for others."""

    arithmetic: Literal["float32", "int8"] = "float32"
    """In which members compute. int8: 8-bit weights and results, whose ranges and the stopping rule are calibrated on
    held-out images."""
    values: Literal["", "float16", "float32", "int8"] = ""
    """Format of the weights; the exported ensemble is rounded to it, and evaluated as rounded. int8: a byte each, and a
    scale for each output of a layer. Empty: int8 where that is the arithmetic, else float16; filled in."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "values", values_for(self.arithmetic, self.values or None))
        except InputError as error:
            raise InputError(f"export: {error}") from None


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run's results."""

    seed: int = 0
    """Of all randomness, >= 0."""
    sparsity: float
    """Of the whole deployed ensemble, all members counted against one dense parent, in [0, 1)."""
    members: int = 4
    """Members of the deployed ensemble, >= 2."""
    data: DataSource
    model: Architecture
    threat: ThreatModel
    held_out_attack: Attack = HELD_OUT_ATTACK
    """On held-out images: to choose epochs and the ensemble, and to calibrate."""
    train: Train
    parent: Parent | None = None
    """A trained classifier to start from; none: the parent is trained with the settings of `train`."""
    prune: Prune
    select: SelectionRule = RobustDiversity()
    ensemble: Ensemble
    stopping: Stopping = Stopping()
    precision: Precision = Precision()
    """Of every training in the run; held-out and test images are evaluated in float32."""
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    minutes: float | None = None
    """Minutes that the whole run may take, > 0: every number of epochs is multiplied by one factor, fewer test images
    are attacked, and `model` gets one of `widths`, as throughput measured before the run allows; none: as is."""
    widths: tuple[int, ...] | None = None
    """Widths of `model` to choose from, ascending: the largest that the images and the minutes allow; none: its own."""

    def __post_init__(self) -> None:
        pool = len(self.prune.pool)
        _for_a_single_network("train.loss", self.train.loss)
        _for_a_single_network("prune.loss", self.prune.loss)
        try:
            self.train.loss.check_complete()
        except InputError as error:
            raise InputError(f"train.loss: {error}") from None
        evaluate = self.evaluate
        for attack in (*evaluate.attacks, evaluate.adaptive, *evaluate.black_box, evaluate.curve_attack):
            attack.check_norm(self.threat.norm)
        checked_seed(self.seed)
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"minutes = {self.minutes:g} must be above 0")
        if self.widths is not None and (not self.widths or list(self.widths) != sorted(set(self.widths))):
            raise InputError(f"widths = {list(self.widths)} must be ascending")
        if self.widths and "width" not in vars(self.model):
            raise InputError(f'widths is set, and model = "{self.model.name}" has no width')
        if not 0 <= self.sparsity < 1:
            hint = f"; did you mean {self.sparsity / 100:g}?" if 1 < self.sparsity < 100 else ""
            raise InputError(f"sparsity = {self.sparsity:g} must lie in [0, 1){hint}")
        if self.members < 2:
            raise InputError(
                f"members = {self.members} must be 2 or more; for one sparse model use one member's recipe"
            )
        if self.members > pool:
            raise InputError(
                f"members = {self.members} is more than the {pool} sub-models that {len(self.prune.scores)} scores "
                f"and folds = {self.prune.folds} give; lower members or raise folds"
            )

    @property
    def member_sparsity(self) -> float:
        """Sparsity of each member: all members together have the weights of one model of the recipe's sparsity."""
        return 1 - (1 - self.sparsity) / self.members


def shipped(kind: Literal["recipes", "studies"] = "recipes") -> dict[str, str]:
    """Return the recipes or studies that come with the package, by name, as TOML text."""
    folder = resources.files("sparsemble") / kind
    return {entry.name[:-5]: entry.read_text("utf-8") for entry in folder.iterdir() if entry.name.endswith(".toml")}


def read_named(name: str, kind: Literal["recipe", "study"]) -> tuple[Path, dict[str, Any]]:
    """Read a recipe or study by its name or path, and return the path and the table."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return path, read_toml(path)
    texts = shipped("recipes" if kind == "recipe" else "studies")
    if name in texts:
        return path, parse_toml(texts[name], name)
    raise InputError(f'"{name}" is neither a {kind} nor a .toml file{nearest(name, texts)}')


def load_recipe(name: str, settings: tuple[str, ...] = ()) -> tuple[str, Recipe]:
    """Read a recipe by name or path and apply `key=value` settings.

    Returns:
        A short name for the run's folder, and the recipe.
    """
    path, table = read_named(name, "recipe")
    with files_beside(path.parent):
        recipe = from_dict(Recipe, override(table, settings))
    stem = path.stem if path.suffix == ".toml" or path.is_file() else name
    return path.parent.name if path.name == "recipe.toml" else stem, recipe


def _for_a_single_network(where: str, training_loss: TrainingLoss) -> None:
    for part in nested_losses(training_loss):
        if part.needs_ensemble:
            raise InputError(
                f'{where} = "{part.name}" is the loss of an ensemble, and a single network is trained there; use one '
                f"such as pgd_at or trades, and {part.name} as ensemble.loss"
            )


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} = {count} must be 1 or more")
