"""ONNX graphs answer as the networks and combiners they are made from."""

import numpy as np
import pytest
import torch

from sparsemble.core.interfaces import Ensemble, combiners
from sparsemble.core.registry import to_dict
from sparsemble.core.types import seeded
from sparsemble.export.onnx import ensemble_graph, member_graph
from sparsemble.models import architectures, build_model
from sparsemble.models.convert import convert_model
from tests.unit.test_runtime_engine import Everything, Sums, stir_

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")


def run(model: object, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images})
    return found


@pytest.mark.parametrize(("make", "shape"), [(Everything, (3, 12, 12)), (Sums, (3, 9, 10))])
@pytest.mark.parametrize("batch", [1, 5])
def test_every_operation(make: type, shape: tuple[int, int, int], batch: int) -> None:
    torch.manual_seed(0)
    model = stir_(make())
    x = torch.rand(batch, *shape, generator=seeded(1))
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(
        run(member_graph(convert_model(model, shape)), x.numpy()), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", combiners.names())
def test_every_combiner(name: str) -> None:
    layout, shape = architectures.build({"name": "tiny", "width": 2}), (1, 8, 8)
    members = [stir_(build_model(layout, shape, 4, (0.5,), (0.3,), rng=seeded(i)), seed=i) for i in range(3)]
    ensemble = Ensemble(members, combiners.build(name)).eval()
    x = torch.rand(6, *shape, generator=seeded(1))
    with torch.no_grad():
        expected = ensemble(x).numpy()
    graph = ensemble_graph(tuple(convert_model(member, shape) for member in members), to_dict(ensemble.combiner))
    np.testing.assert_allclose(run(graph, x.numpy()), expected, rtol=1e-4, atol=1e-4)
