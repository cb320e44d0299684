"""Checks of sparsity, size and speed pass on honest models and fail on one that only claims."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsemble.attacks.fgsm import FGSM
from sparsemble.core.types import Images, Logits, seeded
from sparsemble.evaluation import checks
from sparsemble.evaluation.cost import count_weights
from sparsemble.evaluation.packed import load_packed, save_packed
from tests.unit.sound_ensemble import THREAT, X, Y, changed, ensemble_result, expect, network, without


def pruned() -> nn.Module:
    """A network with three quarters of its weights 0."""
    model = network()
    for layer in (model[0], model[4]):
        weight = layer.weight.data
        weight[weight.abs() < weight.abs().flatten().quantile(0.75)] = 0
    return model


def keep(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: part.weight != 0 for name, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}


class TestZeros:
    def test_recounted_from_the_weights(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 4, 5), nn.Linear(10, 10))
        model[0].weight.data.zero_()
        model[1].weight.data.fill_(1)
        counted = count_weights(model).sparsity
        assert counted == 0.5
        expect(checks.sparsity_is_real(0.5, counted), 39, "pass")
        expect(checks.sparsity_is_real(0.6, counted), 39, "fail")

    def test_the_result_is_recounted(self) -> None:
        model = pruned()
        count = count_weights(model)
        expect(checks.weights_recounted(model, count.nonzeros), 39, "pass", "densest layer 0 with 9 of 36")
        expect(checks.weights_recounted(model, count.nonzeros, count.sparsity), 39, "pass")
        expect(checks.weights_recounted(model, count.nonzeros + 1), 39, "fail")
        expect(checks.weights_recounted(model, count.nonzeros, 0.9), 39, "fail", "0.9000 claimed")
        expect(checks.weights_recounted(network(), count.nonzeros), 39, "fail")

    def test_a_single_regrown_weight_fails(self) -> None:
        expect(checks.zeros_stay(0), 40, "pass")
        expect(checks.zeros_stay(1), 40, "fail")

    def test_masked_zeros_that_regrow_in_training_fail(self) -> None:
        model = pruned()
        masks = keep(model)
        expect(checks.masks_hold(model, masks), 40, "pass")
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        nn.functional.cross_entropy(model(X), Y).backward()
        optimiser.step()
        found = checks.masks_hold(model, masks)
        expect(found, 40, "fail")
        for name, mask in masks.items():
            model.get_submodule(name).weight.data[~mask] = 0
        expect(checks.masks_hold(model, masks), 40, "pass")
        model[4].weight.data.view(-1)[int((~masks["4"]).flatten().nonzero()[0])] = 1e-8
        expect(checks.masks_hold(model, masks), 40, "fail", "1 weights came back")

    def test_without_masks_it_is_waived(self) -> None:
        expect(checks.masks_hold(network(), {}), 40, "waived")


class TestCosts:
    def test_separate_fields_pass(self) -> None:
        expect(checks.costs_apart(ensemble_result()), 41, "pass", "1500 bytes")

    @pytest.mark.parametrize(
        ("broken", "words"),
        [
            (lambda r: without(r, "size.bytes"), "lacks size.bytes"),
            (lambda r: without(r, "latency"), "lacks latency"),
            (lambda r: without(r, "dtype"), "lacks dtype"),
            (lambda r: without(r, "latency.batch_1.spread_ms"), "batch_1.spread_ms is not given"),
            (lambda r: changed(r, "size.macs_nonzero", 10_000), "more operations without the zeros"),
            (lambda r: changed(r, "size.bytes", 100), "fewer bytes than weights"),
        ],
    )
    def test_missing_or_impossible_costs_fail(self, broken: Callable[[Any], Any], words: str) -> None:
        expect(checks.costs_apart(broken(ensemble_result())), 41, "fail", words)

    def test_what_was_not_measured_is_waived(self) -> None:
        expect(checks.costs_apart(changed(ensemble_result(), "latency", None)), 41, "waived", "latency not measured")
        expect(
            checks.costs_apart(without(ensemble_result(), "size.peak_memory")), 41, "waived", "peak memory not measured"
        )


class TestVersions:
    model = pruned()
    adversarial = FGSM()(model, X, Y, THREAT, rng=seeded(0))

    def judged(self, other: Callable[[Images], Logits]) -> checks.Check:
        return checks.versions_agree({"masked": self.model, "other": other}, X, self.adversarial, Y)

    def test_a_packed_copy_agrees(self, tmp_path: Path) -> None:
        save_packed(self.model, tmp_path / "packed.safetensors")
        copied = network()
        load_packed(tmp_path / "packed.safetensors", copied)
        expect(self.judged(copied), 42, "pass", "masked, other agree")

    def test_a_mask_lost_on_export_fails(self) -> None:
        expect(self.judged(network()), 42, "fail", "logits of other and masked")

    def test_other_bits_fail(self) -> None:
        half = copy.deepcopy(self.model).bfloat16()
        expect(self.judged(lambda x: half(x.bfloat16()).float()), 42, "fail")

    def test_nan_and_another_robustness_fail(self) -> None:
        expect(self.judged(lambda x: self.model(x) / 0 * 0), 42, "fail", "nan")

        def sturdier(x: Images) -> Logits:
            logits = self.model(x).detach()
            return logits if torch.equal(x, X) else logits + 100 * nn.functional.one_hot(Y, 4)

        expect(self.judged(sturdier), 42, "fail", "other answers 24 adversarial images rightly")

    def test_one_version_is_waived(self) -> None:
        expect(checks.versions_agree({"masked": self.model}, X, X, Y), 42, "waived", "only one version")


PARENT = {
    "model": "dense parent",
    "runtime": "torch",
    "dtype": "float32",
    "compiled": False,
    "device": "cpu",
    "threads": 1,
    "batch": 64,
}


class TestSpeed:
    @pytest.mark.parametrize(
        ("baseline", "measured", "status", "words"),
        [
            ({}, {"model": "ensemble"}, "pass", "same runtime"),
            ({}, {"model": "ensemble", "runtime": "sparse kernels"}, "fail", "runtime: torch against sparse kernels"),
            ({}, {"model": "ensemble", "compiled": True}, "fail", "compiled: False against True"),
            ({"model": "the ensemble without its rule"}, {"model": "ensemble"}, "fail", "not the dense parent"),
        ],
    )
    def test_both_sides_run_alike(
        self, baseline: dict[str, Any], measured: dict[str, Any], status: str, words: str
    ) -> None:
        found = checks.speed_up_is_fair({**PARENT, **baseline}, {**PARENT, **measured})
        expect(found, 43, status, words)

    def test_untold_conditions_fail_and_no_claim_is_waived(self) -> None:
        untold = {"model": "dense parent", "runtime": "torch"}
        expect(
            checks.speed_up_is_fair(untold, {**untold, "model": "ensemble"}), 43, "fail", "threads: None against None"
        )
        expect(checks.speed_up_is_fair(None, None), 43, "waived", "no speed-up is claimed")
