"""The engine against torch: every operation, odd sizes, every vector width, every kernel configuration."""

import itertools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.models import architectures, build_model
from sparsemble.models.convert import convert_model
from sparsemble.pruning import Mask, prunable_layers
from sparsemble.runtime import engine as engine_module
from sparsemble.runtime.compiler import autotune
from sparsemble.runtime.compiler.batched import BatchPlanner
from sparsemble.runtime.compiler.dead_channels import remove_dead_channels
from sparsemble.runtime.compiler.execution_plan import ExecutionPlan, KernelConfig, PlanStep
from sparsemble.runtime.compiler.fused import ConvOp, fuse
from sparsemble.runtime.compiler.im2col import single_image_layout, vector_width
from sparsemble.runtime.compiler.layout import candidate_tiles, tile_offsets, window_layout
from sparsemble.runtime.compiler.single_image import SingleImagePlanner
from sparsemble.runtime.compiler.weight_stream import divide_groups
from sparsemble.runtime.compiler.workspace import workspace_bytes
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.kernels import jit
from sparsemble.runtime.kernels.jit import lanes
from sparsemble.runtime.network import Add, Flatten, Input, Linear, Network, Relu
from sparsemble.runtime.tensors import Weight
from sparsemble.runtime.thread_pool import ThreadPool

few = settings(deadline=None, max_examples=15, derandomize=True)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def kernels(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the kernels of a layer once for all tests, and measure nothing but in TestTuning."""
    monkeypatch.setenv("SPARSEMBLE_CACHE", str(shared_cache))
    monkeypatch.setattr(autotune, "MIN_SECONDS", 1.0)


def stir_(model: nn.Module, sparsity: float = 0.7, seed: int = 0) -> nn.Module:
    """Give BatchNorm statistics and affine parts that matter, and take weights out."""
    rng = seeded(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=rng).mul_(0.2)
                module.running_var.uniform_(0.5, 1.5, generator=rng)
                module.weight.uniform_(-1.0, 1.5, generator=rng)
                module.bias.normal_(generator=rng).mul_(0.3)
    layers = prunable_layers(model)
    Mask({n: torch.rand(m.weight.shape, generator=rng) >= sparsity for n, m in layers.items()}).apply_(model)
    return model.eval()


def agrees(model: nn.Module, network: Network, images: Tensor, engine: Engine) -> None:
    with torch.no_grad():
        expected = model(images).numpy()
    found = engine.run(images.numpy())
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * max(1.0, float(np.abs(expected).max())))


class Everything(nn.Module):
    """Residual adds both ways round, pools of every kind, a normalisation that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(10)
        self.side = nn.Conv2d(6, 10, 1, stride=2)
        self.late = nn.BatchNorm2d(10)
        self.wide = nn.Conv2d(10, 5, (3, 5), padding=(2, 4), dilation=2)
        self.linear1 = nn.Linear(5 * 3 * 7, 7)
        self.linear2 = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norm1(self.conv1((x - 0.5) / 0.25))), 3, 1, 1)
        x = self.norm2(self.conv2(x)) + self.side(x)
        x = torch.relu(self.late(x))
        x = self.wide(F.avg_pool2d(x, 2, 1, 1))
        return self.linear2(torch.relu(self.linear1(F.max_pool2d(x, (2, 1), (2, 1)).flatten(1))))


class Plain(nn.Module):
    """One convolution of any kind, then the mean."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).flatten(1)


class Sums(nn.Module):
    """Adds and ReLUs that no convolution can take along."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(x))
        z = self.conv(y)
        return (torch.relu(z + y) + z).mean((2, 3))


NETWORKS = [
    ({"name": "tiny", "width": 4}, (1, 8, 8)),
    ({"name": "resnet", "depth": 18, "width": 4}, (3, 16, 16)),
    ({"name": "resnet", "depth": 50, "width": 4}, (3, 16, 16)),
    ({"name": "resnet", "depth": 18, "width": 4, "stem": "imagenet"}, (3, 64, 48)),
    ({"name": "vgg", "width": 4}, (3, 32, 32)),
    ({"name": "wide_resnet", "depth": 10, "width": 1}, (3, 16, 16)),
]


class TestAgainstTorch:
    @pytest.mark.parametrize(("layout", "shape"), NETWORKS, ids=str)
    def test_every_architecture(self, layout: dict[str, object], shape: tuple[int, int, int]) -> None:
        model = build_model(architectures.build(layout), shape, 5, (0.5,) * shape[0], (0.3,) * shape[0], rng=seeded(0))
        stir_(model)
        network = convert_model(model, shape)
        agrees(model, network, torch.rand(19, *shape, generator=seeded(1)), Engine(network))

    @pytest.mark.filterwarnings("ignore:this processor has no AVX2")
    @pytest.mark.parametrize("lanes", [1, 4, 8, 16])
    @pytest.mark.parametrize("make", [Everything, Sums])
    def test_every_operation_at_every_width(
        self, make: type[nn.Module], lanes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sparsemble.runtime.engine.lanes", lambda: lanes)
        torch.manual_seed(0)
        model = stir_(make())
        shape = (3, 12, 12) if make is Everything else (3, 9, 10)
        network = convert_model(model, shape)
        agrees(model, network, torch.rand(2 * lanes + 1, *shape, generator=seeded(1)), Engine(network))

    @given(
        st.integers(1, 5),
        st.integers(1, 9),
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
        st.tuples(st.integers(1, 2), st.integers(1, 2)),
        st.tuples(st.integers(0, 2), st.integers(0, 2)),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.integers(0, 99),
    )
    @few
    def test_every_convolution(
        self,
        channels: int,
        outputs: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        sparsity: float,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        model = stir_(Plain(nn.Conv2d(channels, outputs, kernel, stride, padding)), sparsity, seed)
        shape = (channels, 5 + seed % 4, 4 + seed % 3)
        network = convert_model(model, shape)
        agrees(model, network, torch.rand(3, *shape, generator=seeded(1)), Engine(network))

    @pytest.mark.parametrize("images", [1, 15, 16, 17, 33])
    def test_every_batch_one_image_at_a_time_or_together(self, images: int) -> None:
        model = stir_(build_model(architectures.build("tiny"), (1, 8, 8), 3, (0.5,), (0.3,), rng=seeded(0)))
        engine = Engine(convert_model(model, (1, 8, 8)))
        x = torch.rand(images, 1, 8, 8, generator=seeded(1)).numpy()
        together = engine.run(x)
        assert np.array_equal(together, np.concatenate([engine.run(x[i : i + 1]) for i in range(images)]))
        assert np.array_equal(together, engine.run(x, threads=2))
        assert np.array_equal(together, engine.run(x))


class TestConfigs:
    def test_every_config_gives_the_same_sums(self) -> None:
        torch.manual_seed(0)
        model = stir_(Plain(nn.Conv2d(12, 10, 3, 1, 1)))
        network = convert_model(model, (12, 7, 6))
        x = torch.rand(5, 12, 7, 6, generator=seeded(1))
        for tile, block, outputs in itertools.product([(1, 1), (2, 3), (7, 1), (3, 6)], [1, 5, 12], [1, 4, 8]):
            config = KernelConfig(tile=tile, block=block, outputs=outputs)
            agrees(model, network, x, Engine(network, batch_configs={0: config}))

    @pytest.mark.parametrize("width", [6, 4, 2])
    def test_every_config_gives_one_image_the_same_bits(self, width: int) -> None:
        torch.manual_seed(0)
        network = convert_model(stir_(Plain(nn.Conv2d(12, 10, 3, 1, 1))), (12, 7, width))
        x = torch.rand(1, 12, 7, width, generator=seeded(1)).numpy()
        vectors = -(-7 * width // vector_width(7 * width, lanes()))
        expected = Engine(network).run(np.repeat(x, lanes(), 0))[:1]
        for wide, block, (outputs, chains) in itertools.product(
            {1, min(2, vectors), vectors}, [1, 5, 12], [(1, 1), (1, 3), (1, 8), (4, 1), (4, 2), (8, 1)]
        ):
            config = KernelConfig(tile=(1, wide), block=block, outputs=outputs, chains=chains)
            assert np.array_equal(Engine(network, single_configs={0: config}).run(x), expected)

    def test_tiles_cover_every_output_and_nothing_else(self) -> None:
        torch.manual_seed(0)
        network = convert_model(Plain(nn.Conv2d(2, 3, 3, 2, 1)).eval(), (2, 9, 11))
        planner = BatchPlanner(fuse(network), 8)
        fused, (read, written) = planner.fused.operations[0], (planner.layout.plane(0), planner.layout.plane(1))
        assert isinstance(fused, ConvOp)
        for tile in [(1, 1), (2, 4), (5, 6), (3, 5)]:
            covered = {
                int(to) + y * written.row + x * written.column
                for _, to in tile_offsets(window_layout(fused, read), written, tile)
                for y in range(tile[0])
                for x in range(tile[1])
            }
            assert covered == {written.offset(y, x) for y in range(5) for x in range(6)}

    @pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 5), (1, 1), (4, 4)])
    @pytest.mark.parametrize("most", [1, 12, 28])
    def test_candidate_tiles_fit(self, height: int, width: int, most: int) -> None:
        tiles = candidate_tiles(height, width, most)
        assert tiles
        assert all(1 <= r <= height and 1 <= c <= width and r * c <= most for r, c in tiles)

    def test_residuals_and_relu_ride_along(self) -> None:
        model = build_model(
            architectures.build({"name": "resnet", "width": 4}), (3, 16, 16), 5, (0,) * 3, (1,) * 3, rng=seeded(0)
        )
        fused = fuse(convert_model(model.eval(), (3, 16, 16)))
        products = [operation for operation in fused.operations if isinstance(operation, ConvOp)]
        assert len(fused.operations) == len(products) + 1  # the pool
        assert sum(operation.residual is not None for operation in products) == 8
        assert sum(operation.relu for operation in products) == 17


@pytest.mark.usefixtures("cache")
class TestTuning:
    def test_takes_the_fastest_candidate_once_for_layers_alike_and_answers_with_the_same_bits(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(0)
        body = [nn.Conv2d(6, 6, 3, 1, 1) for _ in range(3)]
        model = stir_(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 0.0)
        network = convert_model(model, (6, 9, 9))
        x = torch.rand(17, 6, 9, 9, generator=seeded(1)).numpy()
        expected = Engine(network).run(x)
        for file in cache.iterdir():
            file.unlink()
        monkeypatch.setattr(autotune, "MIN_SECONDS", 0.0)
        tried: list[list[KernelConfig]] = []

        def times(self: Any, steps: list[PlanStep], plan: ExecutionPlan) -> list[float]:
            # The second candidate is always the fastest.
            return [0.5 if i == 1 else 1.0 for i in range(len(steps))]

        def fastest(self: Any, index: int, candidates: list[KernelConfig]) -> KernelConfig:
            tried.append(candidates)
            return original(self, index, candidates)

        original = autotune._Autotuner._fastest
        monkeypatch.setattr(autotune._Autotuner, "_times", times)
        monkeypatch.setattr(autotune._Autotuner, "_fastest", fastest)
        fused = remove_dead_channels(fuse(network))
        products = [place for place, operation in enumerate(fused.operations) if isinstance(operation, ConvOp)]
        for planner in (BatchPlanner(fused, lanes()), SingleImagePlanner(fused, lanes())):
            tried.clear()
            found = autotune.tune_configs(planner, cache)
            assert list(found) == products
            assert len(tried) == 2  # tiles, then blocks, of one layer
            assert tried[1][0] == tried[0][1]
            assert set(found.values()) == {tried[1][1]}
            assert autotune.tune_configs(planner, cache) == found
            assert len(tried) == 2  # the second time from disk
        assert np.array_equal(Engine(network).run(x), expected)

    def test_measures_real_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(autotune, "MIN_SECONDS", 0.0)
        model = stir_(build_model(architectures.build("tiny"), (1, 8, 8), 3, (0.5,), (0.3,), rng=seeded(0)))
        engine = Engine(convert_model(model, (1, 8, 8)))
        agrees(model, engine.network, torch.rand(18, 1, 8, 8, generator=seeded(1)), engine)


class TestDead:
    @pytest.mark.parametrize(
        "layout",
        [{"name": "resnet", "width": 8}, {"name": "vgg", "width": 8}, {"name": "wide_resnet", "depth": 10, "width": 1}],
        ids=str,
    )
    def test_answers_keep_their_bits_and_weights_go(
        self, layout: dict[str, object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = stir_(
            build_model(architectures.build(layout), (3, 32, 32), 5, (0.5,) * 3, (0.3,) * 3, rng=seeded(0)), 0.985
        )
        network = convert_model(model, (3, 32, 32))
        x = torch.rand(17, 3, 32, 32, generator=seeded(1))
        found = Engine(network).run(x.numpy())
        agrees(model, network, x, Engine(network))
        monkeypatch.setattr("sparsemble.runtime.engine.remove_dead_channels", lambda fused: fused)
        assert np.array_equal(Engine(network).run(x.numpy()), found)
        before, after = fuse(network), remove_dead_channels(fuse(network))
        count = [sum(o.weight.nonzeros for o in one.operations if isinstance(o, ConvOp)) for one in (before, after)]
        assert count[1] < count[0]

    def test_removes_what_reads_a_channel_that_is_always_0_and_what_makes_one_that_is_never_read(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 1),
            nn.ReLU(),
            nn.Conv2d(3, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 2, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        with torch.no_grad():
            model[0].weight[1] = 0
            model[0].bias[1] = -1.0  # always 0 behind the ReLU
            model[4].weight[:, 2] = 0  # nobody reads channel 2 of the second layer
        fused = remove_dead_channels(fuse(convert_model(model.eval(), (2, 4, 4))))
        first, second, third = (o for o in fused.operations if isinstance(o, ConvOp))
        assert first.weight.nonzeros == 4
        assert second.weight.nonzeros == 2 * 3  # of three inputs one is silent, of four outputs one is unread
        assert second.needed_outputs is not None
        assert second.needed_outputs.tolist() == [True, True, False, True]
        assert third.weight.nonzeros == 6


class TestMemory:
    def test_images_run_one_by_one_where_many_take_too_much_and_not_at_all_where_one_does(self) -> None:
        torch.manual_seed(0)
        network = convert_model(Plain(nn.Conv2d(2, 3, 3)).eval(), (2, 20, 20))
        x = torch.rand(40, 2, 20, 20, generator=seeded(1)).numpy()
        fused = fuse(network)
        layout = single_image_layout(fused, lanes())
        one = workspace_bytes(fused, layout)
        tight = Engine(network, max_memory=one)
        assert all(chunk.stop - chunk.start == 1 for chunk in tight.chunks(40))
        assert np.array_equal(tight.run(x), Engine(network).run(x))
        with pytest.raises(
            RuntimeInputError, match=f"a run of one image takes {one} bytes, more than max_memory = {one - 1}"
        ):
            Engine(network, max_memory=one - 1)


def pool_of(threads: int, monkeypatch: pytest.MonkeyPatch) -> ThreadPool:
    """Let runs of any length be shared by that many threads, however many processors there are."""
    thread_pool = ThreadPool()
    thread_pool.size = threads
    monkeypatch.setattr(engine_module, "THREAD_POOL", thread_pool)
    monkeypatch.setattr(engine_module, "MIN_SHARED_SECONDS", 0.0)
    monkeypatch.setattr(engine_module, "WARMUP_RUNS", 0)
    return thread_pool


class TestThreads:
    @pytest.mark.parametrize("threads", [2, 3])
    @pytest.mark.parametrize("count", [1, 7])
    @pytest.mark.parametrize("block", [1, 4])
    def test_threads_that_share_a_run_give_the_same_bits(
        self, threads: int, count: int, block: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        thread_pool = pool_of(threads, monkeypatch)
        torch.manual_seed(1)
        model = build_model(
            architectures.build({"name": "resnet", "width": 6}), (3, 16, 16), 5, (0.5,) * 3, (0.2,) * 3, rng=seeded(1)
        )
        stir_(model, 0.4)
        network = convert_model(model.eval(), (3, 16, 16))
        operations = [p for p, o in enumerate(fuse(network).operations) if isinstance(o, ConvOp)]
        engine = Engine(
            network, single_configs={p: KernelConfig((1, 1), 5, block, 2) for p in operations}, batch_configs={}
        )
        x = torch.rand(count, 3, 16, 16, generator=seeded(0)).numpy()
        plan = engine.single_plan if count == 1 else engine.batch_plan
        expected = plan(x)
        with thread_pool.claimed() as claimed:
            assert claimed
            for _ in range(20):
                assert np.array_equal(plan(x, threads), expected)
        assert np.array_equal(engine.run(x[:1], threads), Engine(network).run(x[:1]))

    def test_work_is_divided_equally_and_wholly(self) -> None:
        rng = np.random.default_rng(0)
        group = np.repeat(np.arange(40, dtype=np.int32), rng.integers(0, 90, 40))
        parts = [divide_groups(group, 40, (i, 3)) for i in range(3)]
        assert (np.sum(parts, 0) == 1).all()
        work = [int(part[group].sum()) for part in parts]
        assert max(work) - min(work) < 90

    def test_a_run_is_shared_while_that_is_faster(self) -> None:
        torch.manual_seed(0)
        engine = Engine(convert_model(Plain(nn.Conv2d(2, 3, 3)).eval(), (2, 6, 6)))
        plan = engine.single_plan
        assert not plan.worth_sharing(2)  # the time of one thread is not known yet
        plan.seconds = 0.5e-4
        assert not plan.worth_sharing(2)
        plan.seconds = 1e-2
        assert not plan.worth_sharing(2)  # the first runs are slow
        plan.single_thread_runs = engine_module.WARMUP_RUNS
        assert plan.worth_sharing(2)
        for seconds, worth in ((5e-3, True), (2e-2, False)):
            plan.shared_runs[2] = 100, seconds
            assert plan.worth_sharing(2) is worth

    def test_runs_that_come_at_the_same_time_do_not_wait_for_each_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pool_of(2, monkeypatch)
        torch.manual_seed(0)
        engine = Engine(convert_model(Plain(nn.Conv2d(2, 3, 3)).eval(), (2, 20, 20)))
        x = torch.rand(1, 2, 20, 20, generator=seeded(1)).numpy()
        expected = engine.run(x)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: engine.run(x, 2), range(200)))
        assert all(np.array_equal(one, expected) for one in found)

    def test_sharing_is_tried_again_after_a_while(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine_module, "RETRY_AFTER", 5)
        torch.manual_seed(0)
        plan = Engine(convert_model(Plain(nn.Conv2d(2, 3, 3)).eval(), (2, 6, 6))).single_plan
        plan.seconds, plan.single_thread_runs, plan.shared_runs[2] = 1e-2, 100, (100, 1.0)
        assert [plan.worth_sharing(2) for _ in range(6)] == [False] * 5 + [True]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_an_error_in_a_shared_run_leaves_no_thread_waiting(
        self, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        thread_pool = pool_of(2, monkeypatch)
        torch.manual_seed(0)
        engine = Engine(convert_model(Plain(nn.Conv2d(2, 3, 3)).eval(), (2, 20, 20)))
        x = torch.rand(1, 2, 20, 20, generator=seeded(1)).numpy()
        expected = engine.run(x)
        engine.run(x, 2)
        assert thread_pool.executor is not None
        submit = thread_pool.executor.submit

        def submit_and_fail(*words: Any) -> None:
            submit(*words)
            raise error("for a test")

        monkeypatch.setattr(thread_pool.executor, "submit", submit_and_fail)
        if error is RuntimeError:
            assert np.array_equal(engine.run(x, 2), expected)
        else:
            with pytest.raises(KeyboardInterrupt):
                engine.run(x, 2)
        monkeypatch.setattr(thread_pool.executor, "submit", submit)
        for _ in range(5):
            assert np.array_equal(engine.run(x, 2), expected)

    def test_where_no_thread_can_be_started_one_does_it_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        thread_pool = pool_of(3, monkeypatch)
        torch.manual_seed(0)
        engine = Engine(convert_model(Plain(nn.Conv2d(2, 3, 3)).eval(), (2, 20, 20)))
        x = torch.rand(1, 2, 20, 20, generator=seeded(1)).numpy()
        expected, started = engine.run(x), []

        def start(thread: threading.Thread) -> None:
            started.append(thread)
            if len(started) == 2:
                raise RuntimeError("can't start new thread")
            begin(thread)

        begin = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", start)
        for _ in range(3):
            assert np.array_equal(engine.run(x, 3), expected)
        assert thread_pool.size == 1
        assert len(started) == 2  # it was tried once


def test_images_run_one_by_one_as_long_as_that_took_less_time() -> None:
    torch.manual_seed(0)
    engine = Engine(convert_model(Plain(nn.Conv2d(2, 3, 3)).eval(), (2, 6, 6)))
    for one, many, few in ((2e-3, 9e-3, 4), (1e-3, 1.0, engine.lanes - 1), (1.0, 1e-3, 1)):
        engine.single_plan.seconds, engine.batch_plan.seconds = one, many
        sizes = [chunk.stop - chunk.start for chunk in engine.chunks(engine.lanes + few)]
        assert sizes == [engine.lanes] + [1] * few
        if few + 1 < engine.lanes:
            assert [chunk.stop - chunk.start for chunk in engine.chunks(few + 1)] == [few + 1]


def test_a_processor_without_wide_vectors_gets_a_warning_and_correct_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemble.runtime.engine.lanes", lambda: 1)
    torch.manual_seed(0)
    model = Plain(nn.Conv2d(2, 3, 3)).eval()
    with pytest.warns(
        UserWarning, match="this processor has no AVX2, AVX-512 or NEON; networks compute the same logits, but"
    ):
        engine = Engine(convert_model(model, (2, 5, 5)))
    agrees(model, engine.network, torch.rand(3, 2, 5, 5, generator=seeded(1)), engine)


class TestCache:
    def test_compiled_code_is_found_again(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        network = convert_model(Plain(nn.Conv2d(2, 3, 3)).eval(), (2, 5, 5))
        x = torch.rand(4, 2, 5, 5, generator=seeded(1)).numpy()
        expected = Engine(network).run(x)
        assert sorted(file.suffix for file in cache.iterdir()) == [".choices", ".object"]
        monkeypatch.setattr(jit, "_optimised", lambda *_: pytest.fail("compiled again"))
        assert np.array_equal(Engine(network).run(x), expected)

    @pytest.mark.parametrize("suffix", ["object", "choices"])
    def test_a_damaged_file_is_made_anew(self, cache: Path, suffix: str) -> None:
        torch.manual_seed(0)
        network = convert_model(Plain(nn.Conv2d(2, 3, 3)).eval(), (2, 5, 5))
        x = torch.rand(4, 2, 5, 5, generator=seeded(1)).numpy()
        expected = Engine(network).run(x)
        (file,) = cache.glob(f"*.{suffix}")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))
        assert np.array_equal(Engine(network).run(x), expected)
        assert file.read_bytes() != bytes(content)

    def test_without_a_folder_it_works_all_the_same(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        torch.manual_seed(0)
        network = convert_model(Plain(nn.Conv2d(2, 3, 3)).eval(), (2, 5, 5))
        Engine(network, folder=tmp_path / "file" / "cache").run(np.zeros((1, 2, 5, 5), np.float32))


@pytest.fixture(scope="module")
def imported() -> str:
    code = "import sys, sparsemble.runtime.engine; print([m for m in sys.modules if m.split('.')[0] == 'torch'])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_engine_never_imports_torch(imported: str) -> None:
    assert imported == "[]"


class TestFlattened:
    ones = Weight.from_dense(np.ones((3, 8)))
    zeros = np.zeros(3, np.float32)

    @pytest.mark.parametrize("images", [1, 20])
    def test_relu_keeps_the_planes(self, images: int) -> None:
        linear = Linear((2,), self.ones, self.zeros)
        network = Network((2, 2, 2), (Input(), Flatten((0,)), Relu((1,)), linear))
        x = np.random.default_rng(0).uniform(-1, 1, (images, 2, 2, 2)).astype(np.float32)
        expected = np.maximum(x, 0).sum((1, 2, 3))[:, None].repeat(3, 1)
        np.testing.assert_allclose(Engine(network).run(x), expected, rtol=1e-6)

    def test_their_sum_with_features_is_refused_with_a_sentence(self) -> None:
        square = Weight.from_dense(np.ones((8, 8)))
        layers = Linear((1,), square, np.zeros(8, np.float32)), Add((1, 2)), Linear((3,), self.ones, self.zeros)
        with pytest.raises(RuntimeInputError, match="does not combine flattened planes with features"):
            Engine(Network((2, 2, 2), (Input(), Flatten((0,)), *layers)))


class TestConversion:
    def test_batchnorm_is_folded_where_it_can_be(self) -> None:
        model = stir_(
            build_model(
                architectures.build({"name": "vgg", "width": 2}), (3, 32, 32), 3, (0.0,) * 3, (1.0,) * 3, rng=seeded(0)
            )
        )
        kinds = [type(node).__name__ for node in convert_model(model, (3, 32, 32)).nodes]
        assert kinds.count("Affine") == 2  # the images' mean and standard deviation
        assert kinds.count("Convolution") == 13

    def test_what_it_does_not_know_is_named(self) -> None:
        with pytest.raises(InputError, match="conv"):
            convert_model(Plain(nn.Conv2d(4, 4, 3, groups=2)).eval(), (4, 5, 5))
        model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten()).eval()
        with pytest.raises(InputError, match=r"pools \(6, 6\) to \(4, 4\)"):
            convert_model(model, (3, 8, 8))
