"""NIS: neuron importance, propagated back from the logits (EED main paper, eqs. 7-8)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.models.graph import Graph, trace
from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.score import AdversarialBatches, PruningScore, Scores, pruning_scores
from sparsemble.pruning.scores.bnsf import norm_factor


@final
@pruning_scores.register("nis")
@dataclass(frozen=True, kw_only=True)
class NIS(PruningScore):
    """|w_jk| I_j, where I_j is the importance of output j and every logit starts with 1.

    The recursion I_k = sum_j |w_jk| I_j is summed over the taps of a convolution; BatchNorm multiplies by
    |gamma| / sigma; ReLU and pooling leave it unchanged; an add passes it to both branches.

    Source: EED main paper, eqs. 7-8. Departs: a weight's score is its magnitude times the importance of its output.
    """

    def __call__(self, model: nn.Module, adversarial: AdversarialBatches) -> Scores:
        """Score every prunable weight."""
        trace(model)  # refuses what cannot be traced before images are crafted
        x, _ = next(iter(adversarial()))
        importance, _ = neuron_importance(model, (x.shape[1], x.shape[2], x.shape[3]))
        scores: Scores = {}
        for name, layer in prunable_layers(model).items():
            magnitude = layer.weight.detach().abs()
            output = importance[name] / importance[name].max()
            scores[name] = magnitude * output.to(magnitude).view(-1, *[1] * (magnitude.ndim - 1))
        return scores


@torch.no_grad()
def neuron_importance(model: nn.Module, shape: tuple[int, int, int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the importance of the output and of the input channels of every prunable layer, float64.

    Source: EED main paper, eqs. 7-8. Departs: every logit starts with importance 1.
    """
    graph = Graph(model, shape)
    received: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    last = graph.operations[-1]
    device = next(model.parameters()).device
    received[last.name] = torch.ones(last.shape[0], dtype=torch.float64, device=device)
    for operation in reversed(graph.operations):
        flow = received.get(operation.name)
        if flow is None:
            continue
        module = operation.module
        if isinstance(module, nn.Conv2d | nn.Linear):
            outputs[operation.name] = flow
            flow = _through(module, flow, _channels(graph, operation.inputs[0]))
        elif isinstance(module, nn.BatchNorm2d):
            flow = flow * norm_factor(module).double()
        for source in operation.inputs:
            received[source] = received[source] + flow if source in received else flow
    inputs = {name: received[layer.inputs[0]] for name, layer in graph.layers().items() if name in outputs}
    for name in graph.layers():
        for flow in (outputs.get(name), inputs.get(name)):
            if flow is None or not flow.isfinite().all() or not flow.max() > 0:
                raise InputError(f"the importance that reaches layer {name} is 0 or not finite, so NIS cannot rank it")
    return outputs, inputs


def _through(layer: nn.Conv2d | nn.Linear, flow: Tensor, channels: int) -> Tensor:
    """Return sum_j |w_jk| I_j for each input channel k."""
    edges = layer.weight.detach().abs().double().reshape(len(layer.weight), channels, -1).sum(2)
    return flow @ edges


def _channels(graph: Graph, name: str) -> int:
    """Return the number of channels of a feature map, flattened or not."""
    operation = graph.by_name[name]
    return _channels(graph, operation.inputs[0]) if operation.kind == "flatten" else operation.shape[0]
