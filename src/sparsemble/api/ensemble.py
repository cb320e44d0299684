"""`sparsemble.train_ensemble`: the members learn together (EED main paper, sections 4.2 and 4.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from sparsemble.api.context import Context, resumable
from sparsemble.api.results import Data, Model, TrainedEnsemble, named_models, network_of
from sparsemble.api.training import HELD_OUT_ATTACK, SCHEDULE, fit_best_epoch_, plain_copy
from sparsemble.attacks.attack import Attack
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.module_state import copy_network
from sparsemble.core.threat import ThreatModel
from sparsemble.data import load as load_data
from sparsemble.data.dataset import Split
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.losses.eed import EED
from sparsemble.models.model_io import ModelSpec
from sparsemble.models.plain_network import check_zeros
from sparsemble.pruning.mask import KeepZero, Mask
from sparsemble.training.loss import TrainingLoss
from sparsemble.training.precision import Precision
from sparsemble.training.schedule import Schedule
from sparsemble.training.validation import adversarial_images, is_correct


def train_ensemble(
    members: Mapping[str, Model] | Sequence[Model],
    data: Data,
    threat: ThreatModel,
    *,
    parent: Model | None = None,
    combiner: Combiner = MeanProbability(),
    loss: TrainingLoss = EED(),
    epochs: int = 80,
    schedule: Schedule = SCHEDULE,
    eval_every: int = 1,
    held_out_attack: Attack = HELD_OUT_ATTACK,
    precision: Precision = Precision(),
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "auto",
    context: Context | None = None,
) -> TrainedEnsemble:
    """Train sub-models together, their zeros held at zero, and put the most robust one first; they are left as found.

    Args:
        members: two or more sub-models, with names or in a sequence, such as what `select` returns.
        data: a data set, or training images as a split or tensors (x, y), of which a tenth is held out.
        threat: what the adversary may do.
        parent: teaches, where the loss has a teacher.
        combiner: makes one prediction of the members'.
        loss: of the ensemble.
        epochs: passes over the training images, >= 1.
        schedule: learning rate, batch size, optimiser, EMA of the weights.
        eval_every: epochs between measurements on held-out images, >= 1.
        held_out_attack: crafts the adversarial held-out images.
        precision: number format and memory layout of the training; ensembles are never compiled.
        seed: of order, augmentation and attack starts, >= 0.
        folder: keeps a checkpoint after every epoch and the finished ensemble; the same call goes on from there.
        device: auto, cpu, cuda or cuda:N.
        context: takes the place of seed, folder and device where the caller keeps them.

    Returns:
        The ensemble in running order, without a stopping rule (`calibrate` sets one).

    Raises:
        InputError: members that see different images or classes, or a folder that holds another result.
    """
    settings = dict(locals())
    models = named_models(members)

    def compute(running: Context) -> TrainedEnsemble:
        images = load_data(data).to(running.device)
        networks = [plain_copy(model, images, running) for model in models.values()]
        ensemble = Ensemble(networks, combiner)
        teacher = copy_network(network_of(parent)).to(running.device).eval() if parent is not None else None
        masks = [Mask.of(network) for network in networks]
        history = fit_best_epoch_(
            ensemble,
            images,
            loss if teacher is None else loss.with_teacher(teacher),
            schedule,
            epochs=epochs,
            threat=threat,
            held_out_attack=held_out_attack,
            eval_every=eval_every,
            precision=replace(precision, compile=False),  # losses inspect the members
            context=running,
            callbacks=[KeepZero({f"members.{i}": mask for i, mask in enumerate(masks)})],
        )
        for network, mask in zip(networks, masks, strict=True):
            check_zeros(network, mask, images.shape)
        robust = _member_robustness(networks, images.selection, held_out_attack, threat, running)
        # The most robust member runs first; ties keep the order of the selection.
        order = sorted(range(len(networks)), key=lambda i: -robust[i])
        names = list(models)
        return TrainedEnsemble(
            model=Ensemble([networks[i] for i in order], combiner).eval(),
            names=tuple(names[i] for i in order),
            spec=_common_spec([model.spec for model in models.values()]),
            history=tuple(history),
            held_out_robust=tuple(robust[i] for i in order),
        )

    return resumable("ensemble", settings, compute, TrainedEnsemble.load)


def _member_robustness(
    networks: Sequence[nn.Module], split: Split, attack: Attack, threat: ThreatModel, running: Context
) -> list[float]:
    """Return the robust accuracy of each network by itself."""
    robust = []
    for network in networks:
        with running.counting(network):
            x_adv = adversarial_images(network, split, attack, threat, running.rng("order"))
            robust.append(float(is_correct(network, x_adv, split.labels).float().mean()))
    return robust


def _common_spec(specs: Sequence[ModelSpec | None]) -> ModelSpec | None:
    """Return the specification that all members share; none where they differ."""
    return specs[0] if all(spec == specs[0] for spec in specs) else None
