"""Checks of sparsity, size and speed pass on honest models and fail on one that only claims."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from sparsemble.core.results import FormatAgreement
from sparsemble.evaluation.checks import sparsity
from sparsemble.evaluation.cost import count_weights
from tests.unit.sound_ensemble import X, Y, changed, ensemble_result, expect, network


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
        expect(sparsity.weights_recounted(model, 100, 0.5), 39, "passed")
        expect(sparsity.weights_recounted(model, 100, 0.6), 39, "failed")

    def test_the_result_is_recounted(self) -> None:
        model = pruned()
        count = count_weights(model)
        expect(sparsity.weights_recounted(model, count.nonzeros), 39, "passed", "densest layer 0 with 9 of 36")
        expect(sparsity.weights_recounted(model, count.nonzeros, count.sparsity), 39, "passed")
        expect(sparsity.weights_recounted(model, count.nonzeros + 1), 39, "failed")
        expect(sparsity.weights_recounted(model, count.nonzeros, 0.9), 39, "failed", "0.9000 claimed")
        expect(sparsity.weights_recounted(network(), count.nonzeros), 39, "failed")

    def test_masked_zeros_that_regrow_in_training_fail(self) -> None:
        model = pruned()
        masks = keep(model)
        expect(sparsity.masks_hold(model, masks), 40, "passed")
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        nn.functional.cross_entropy(model(X), Y).backward()
        optimiser.step()
        found = sparsity.masks_hold(model, masks)
        expect(found, 40, "failed")
        for name, mask in masks.items():
            model.get_submodule(name).weight.data[~mask] = 0
        expect(sparsity.masks_hold(model, masks), 40, "passed")
        model[4].weight.data.view(-1)[int((~masks["4"]).flatten().nonzero()[0])] = 1e-8
        expect(sparsity.masks_hold(model, masks), 40, "failed", "1 weights came back")

    def test_without_masks_it_is_skipped(self) -> None:
        expect(sparsity.masks_hold(network(), {}), 40, "skipped")


class TestCosts:
    def test_separate_fields_pass(self) -> None:
        expect(sparsity.costs_apart(ensemble_result()), 41, "passed", "1500 bytes")

    @pytest.mark.parametrize(
        ("broken", "words"),
        [
            (lambda r: changed(r, "cost.macs_nonzero", 10_000), "more operations without the zeros"),
            (lambda r: changed(r, "cost.bytes", 100), "fewer bytes than weights"),
        ],
    )
    def test_impossible_costs_fail(self, broken: Callable[[Any], Any], words: str) -> None:
        expect(sparsity.costs_apart(broken(ensemble_result())), 41, "failed", words)

    def test_what_was_not_measured_is_skipped(self) -> None:
        expect(
            sparsity.costs_apart(changed(ensemble_result(), "cost.latency", {})), 41, "skipped", "latency not measured"
        )
        expect(
            sparsity.costs_apart(changed(ensemble_result(), "cost.peak_memory", None)),
            41,
            "skipped",
            "peak memory not measured",
        )


AGREES = FormatAgreement(images=296, logits=2.5e-7, labels=0, decisions=0, near=0)


class TestExports:
    def test_formats_with_the_same_labels_and_decisions_pass(self) -> None:
        expect(sparsity.exports_agree({"packed": AGREES, "onnx": AGREES}), 42, "passed", "packed, onnx agree")

    @pytest.mark.parametrize("field", ["labels", "decisions"])
    def test_a_format_that_decides_otherwise_fails(self, field: str) -> None:
        other = replace(AGREES, **{field: 3, "near": 2})
        expect(sparsity.exports_agree({"packed": AGREES, "onnx": other}), 42, "failed", "onnx: 3 of 296 images differ")

    def test_images_on_the_border_may_differ(self) -> None:
        expect(sparsity.exports_agree({"packed": replace(AGREES, labels=2, near=2)}), 42, "passed")

    def test_a_model_that_was_not_exported_is_skipped(self) -> None:
        expect(sparsity.exports_agree({}), 42, "skipped", "not exported")


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
            ({}, {"model": "ensemble"}, "passed", "same runtime"),
            ({}, {"model": "ensemble", "runtime": "sparse kernels"}, "failed", "runtime: torch against sparse kernels"),
            ({}, {"model": "ensemble", "compiled": True}, "failed", "compiled: False against True"),
            ({"model": "the ensemble without its rule"}, {"model": "ensemble"}, "failed", "not the dense parent"),
        ],
    )
    def test_both_sides_run_alike(
        self, baseline: dict[str, Any], measured: dict[str, Any], status: str, words: str
    ) -> None:
        found = sparsity.speed_up_is_fair({**PARENT, **baseline}, {**PARENT, **measured})
        expect(found, 43, status, words)

    def test_unknown_conditions_fail_and_no_claim_is_skipped(self) -> None:
        untold = {"model": "dense parent", "runtime": "torch"}
        expect(
            sparsity.speed_up_is_fair(untold, {**untold, "model": "ensemble"}),
            43,
            "failed",
            "threads: None against None",
        )
        expect(sparsity.speed_up_is_fair(None, None), 43, "skipped", "no speed-up is claimed")
