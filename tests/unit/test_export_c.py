"""Ensembles as C: logits as in numpy, labels and decisions as the Python runtime's, memory as stated."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sparsemble.cli import app
from sparsemble.core.errors import InputError
from sparsemble.export.c import arena
from sparsemble.export.c.arena import place_buffers, words
from sparsemble.export.c.literals import float_literal, string_literal
from sparsemble.export.c.weights import gap_codes, store_weights
from sparsemble.export.c.write import CExport, write_c
from sparsemble.runtime.combiners import build_combiner
from sparsemble.runtime.compiler.fused import ConvOp, PoolOp, fuse, sources
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.images import Preprocessing
from sparsemble.runtime.network import (
    Add,
    Affine,
    AveragePool,
    Convolution,
    Flatten,
    Input,
    Linear,
    MaxPool,
    Network,
    Relu,
    Weight,
)
from sparsemble.runtime.stopping import build_rule
from tests import c_program, quantised
from tests.helpers import covering, examples
from tests.unit.test_runtime_geometry import network as draw_network

RULES: list[dict[str, Any]] = [
    {"name": "never"},
    {"name": "at_once"},
    {"name": "confidence", "threshold": 0.6},
    {"name": "first_passage", "a": 60.0, "b": 4.0, "tau_u": 0.1, "tau_c": 0.7},
    {"name": "die", "a": 4.0, "b": 4.0, "tau_u": 0.3, "tau_c": 0.7},
    {"name": "agreement", "sure": 0.6, "votes": 2, "lead": 0.2},
]
COMBINERS: list[dict[str, Any]] = [
    {"name": "mean_probability"},
    {"name": "mean_logit"},
    {"name": "maximum"},
    {"name": "soft_vote", "temperature": 0.25},
]


def weight(rng: np.random.Generator, *shape: int, sparsity: float = 0.6) -> Weight:
    dense = rng.standard_normal(shape) * (rng.random(shape) >= sparsity) / math.sqrt(math.prod(shape[1:]))
    return Weight.from_dense(dense)


def floats(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.standard_normal(count).astype(np.float32)


def every_operation(seed: int) -> Network:
    """A network with each operation, fused and alone, and windows of uneven geometry."""
    rng = np.random.default_rng(seed)
    nodes = (
        Input(),
        Affine((0,), floats(rng, 3), floats(rng, 3)),
        Convolution((1,), weight(rng, 6, 3, 3, 2, sparsity=0), floats(rng, 6), padding=(2, 1)),
        MaxPool((2,), (3, 2), (2, 1), (1, 1)),
        Convolution((3,), weight(rng, 6, 6, 3, 3), floats(rng, 6), padding=(2, 2), dilation=(2, 2)),
        Add((4, 3)),
        Relu((5,)),
        Affine((6,), floats(rng, 6), floats(rng, 6)),
        Relu((3,)),
        Add((7, 8)),
        Convolution((9,), weight(rng, 9, 6, 2, 3, sparsity=0.9), floats(rng, 9), stride=(2, 3)),
        AveragePool((10,), (2, 3), (1, 2), (1, 1)),
        Relu((11,)),
        Flatten((12,)),
        Linear((13,), weight(rng, 7, 9 * 5 * 2, sparsity=0.8), floats(rng, 7)),
        Relu((14,)),
        Linear((15,), weight(rng, 5, 7, sparsity=0.2), floats(rng, 5)),
    )
    return Network((3, 13, 11), nodes)


def linear_network(seed: int, classes: int = 5) -> Network:
    """Logits that are linear in the image, so that members agree on some images."""
    common = np.random.default_rng(99).standard_normal((classes, 12))
    own = np.random.default_rng(seed).standard_normal((classes, 12))
    weights = common + own
    layer = Linear((1,), Weight.from_dense(weights), (-0.5 * weights.sum(1)).astype(np.float32))
    return Network((3, 2, 2), (Input(), Flatten((0,)), layer))


def ensemble_of(*members: Network, **settings: Any) -> PackedEnsemble:
    given = {
        "combiner": {"name": "mean_logit"},
        "rule": {"name": "never"},
        "classes": tuple(f"c{k}" for k in range(members[0].classes)),
        "parent_weights": 1000,
    }
    return PackedEnsemble(members=members, **(given | settings))


def random_pixels(network: Network, count: int, seed: int = 0) -> np.ndarray:
    channels, height, width = network.image
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def member_logits(ensemble: PackedEnsemble, pixels: np.ndarray) -> np.ndarray:
    """Return (M, B, K) in numpy."""
    images = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return np.stack([quantised.logits(member, images) for member in ensemble.members])


def decide(ensemble: PackedEnsemble, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return label, members run and prefix of each image, and the log-probabilities."""
    rule, combiner, total = build_rule(ensemble.rule), build_combiner(ensemble.combiner), len(ensemble.members)
    decisions, combined = [], []
    for b in range(logits.shape[1]):
        for m in range(1, total + 1):
            stop, prefix = rule(logits[:m, [b]], combiner, last=m == total)
            if stop[0] or m == total:
                combined.append(combiner(logits[: prefix[0], [b]])[0])
                decisions.append((combined[-1].argmax(), m, prefix[0]))
                break
    return np.array(decisions).T, np.exp(combined)


@pytest.mark.parametrize("target", ["host", "aarch64", "arm"])
def test_every_operation_and_form_of_weights(target: str, tmp_path: Path) -> None:
    members = [every_operation(seed) for seed in range(3)]
    for values, member in zip(("float32", "float16", "int8"), members, strict=True):
        rounded = packed.round_weights(ensemble_of(member), values).members[0]
        members[members.index(member)] = rounded
    forms = {store_weights(w, "w").values.values.dtype.name for m in members for w in as_convolutions(m)}
    assert forms == {"float32", "float16", "int8"}
    ensemble, pixels = ensemble_of(*members), random_pixels(members[0], 30)
    write_c(ensemble, tmp_path)
    found = c_program.run(tmp_path, pixels, target=target)
    expected = member_logits(ensemble, pixels).transpose(1, 0, 2)
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-5)


def as_convolutions(member: Network) -> list[Weight]:
    return [operation.weight for operation in fuse(member).operations if isinstance(operation, ConvOp)]


@given(data=st.data())
@examples(24, derandomize=True)
def test_any_geometry(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    network = draw_network(data.draw)
    ensemble, folder, pixels = ensemble_of(network), tmp_path_factory.mktemp("c"), random_pixels(network, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "MOST_PIXELS", data.draw(st.sampled_from([0, 256])))
        write_c(ensemble, folder)
    found = c_program.run(folder, pixels, flags=c_program.QUICK)
    expected = member_logits(ensemble, pixels)[0]
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found.logits[:, 0], expected, rtol=1e-5, atol=1e-5 * scale)


@given(st.data())
@examples(60, derandomize=True)
def test_no_result_is_overwritten_before_it_is_read(data: st.DataObject) -> None:
    check_places(draw_network(data.draw))


def check_places(network: Network) -> int:
    """Check each read against what was written there last; return the size of the memory in words."""
    graph = fuse(network)
    places = place_buffers(graph)
    owner = np.zeros(places.size, int)

    def cells(buffer: int) -> slice:
        return slice(places.offsets[buffer], places.offsets[buffer] + words(graph, buffer))

    for operation in graph.operations:
        for source in sources(operation):
            assert (owner[cells(source)] == source).all()
        owner[cells(operation.out)] = -1
        if isinstance(operation, ConvOp | PoolOp):
            assert (owner[cells(operation.source)] == operation.source).all()
        owner[cells(operation.out)] = operation.out
    assert (owner[cells(graph.logits_buffer)] == graph.logits_buffer).all()
    return places.size


def test_logits_that_are_the_pixels(tmp_path: Path) -> None:
    network = Network((3, 2, 2), (Input(), Flatten((0,))))
    ensemble, pixels = ensemble_of(network), random_pixels(network, 3)
    write_c(ensemble, tmp_path)
    assert np.array_equal(c_program.run(tmp_path, pixels).logits[:, 0], member_logits(ensemble, pixels)[0])


def test_a_large_image_is_read_through_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = (
        Input(),
        Affine((0,), floats(rng, 3), floats(rng, 3)),
        Convolution((1,), weight(rng, 2, 3, 3, 3), floats(rng, 2), stride=(2, 2), padding=(1, 2)),
        Convolution((1,), weight(rng, 2, 3, 1, 3), floats(rng, 2), stride=(2, 2), padding=(0, 2)),
        Add((2, 3)),
        AveragePool((4,), (10, 11), (1, 1)),
        Flatten((5,)),
    )
    network = Network((3, 20, 20), nodes)
    assert check_places(network) == 3 * 256 + 2 * 10 * 11
    ensemble, pixels = ensemble_of(network), random_pixels(network, 5)
    write_c(ensemble, tmp_path)
    found = c_program.run(tmp_path, pixels, target="arm" if shutil.which("qemu-arm") else "host")
    np.testing.assert_allclose(found.logits[:, 0], member_logits(ensemble, pixels)[0], rtol=1e-5, atol=1e-5)


def test_a_residual_block_takes_two_planes() -> None:
    rng = np.random.default_rng(0)
    nodes: list[Any] = [Input(), Convolution((0,), weight(rng, 4, 1, 3, 3), floats(rng, 4), padding=(1, 1))]
    for _ in range(3):
        start = len(nodes) - 1
        for source in (start, start + 1):
            nodes += [Convolution((source,), weight(rng, 4, 4, 3, 3), floats(rng, 4), padding=(1, 1))]
        nodes += [Add((start + 2, start)), Relu((start + 3,))]
    nodes += [AveragePool((len(nodes) - 1,), (5, 5), (5, 5)), Flatten((len(nodes),))]
    assert check_places(Network((1, 5, 5), tuple(nodes))) == 2 * 4 * 25


@given(st.lists(st.integers(1, 900), min_size=1, max_size=5), st.sampled_from([2, 4, 8]), st.integers(0, 99))
@examples(40, derandomize=True)
def test_gaps_read_back(counts: list[int], bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = np.zeros((len(counts), 900), np.float32)
    for row, count in zip(dense, counts, strict=True):
        row[rng.choice(900, count // 3, replace=False)] = 1
    packed_codes = gap_codes(Weight.from_dense(dense), bits)
    codes = [int(byte) >> shift & 2**bits - 1 for byte in packed_codes for shift in range(0, 8, bits)]
    found = np.zeros_like(dense)
    stream = iter(codes)
    for row in found:
        position = -1
        while (code := next(stream)) != 2**bits - 1:
            position += code + (code < 2**bits - 2)
            if code < 2**bits - 2:
                row[position] = 1
    assert np.array_equal(found, dense)
    assert len(list(stream)) < 8 // bits


def test_a_weight_far_from_others_takes_little_memory() -> None:
    far = Weight((1, 1, 1, 2**31 - 1), np.array([2**31 - 2], np.uint32), np.ones(1, np.float32))
    stored = store_weights(far, "w")
    assert stored.gap_bits == 8
    assert sum(array.size for array in stored.arrays) < 2**31 / 250
    with pytest.raises(InputError, match=r"C needs fewer than 2\^31 for each output"):
        store_weights(replace(far, shape=(1, 1, 1, 2**31)), "w")


@pytest.mark.parametrize(("rule", "combiner"), covering(RULES, COMBINERS))
def test_labels_and_decisions(rule: dict[str, Any], combiner: dict[str, Any], tmp_path: Path) -> None:
    ensemble = ensemble_of(*(linear_network(seed) for seed in range(4)), rule=rule, combiner=combiner)
    pixels = random_pixels(ensemble.members[0], 400)
    write_c(ensemble, tmp_path)
    found = c_program.run(tmp_path, pixels, flags=c_program.QUICK)
    logits = member_logits(ensemble, pixels)
    decisions, probabilities = decide(ensemble, logits)
    near = np.zeros(400, bool)
    rng = np.random.default_rng(1)
    for _ in range(3):
        noise = rng.uniform(-1e-5, 1e-5, logits.shape).astype(np.float32)
        near |= (decide(ensemble, logits + noise)[0] != decisions).any(0)
    assert near.sum() <= 3
    same = np.stack([found.labels, found.members_run, found.answered_with]) == decisions
    assert same[:, ~near].all()
    np.testing.assert_allclose(found.probabilities[~near], probabilities[~near], atol=1e-5)
    if rule["name"] in ("confidence", "first_passage", "die", "agreement"):
        assert len(set(found.members_run.tolist())) >= 3
    if rule["name"] == "die":
        assert (found.answered_with < found.members_run).any()


def test_the_memory_is_what_is_stated(tmp_path: Path) -> None:
    c_program.need("cc", "nm")
    ensemble = ensemble_of(every_operation(0), every_operation(1), rule=RULES[4], combiner=COMBINERS[0])
    made = write_c(ensemble, tmp_path)
    subprocess.run(["cc", *c_program.STRICT, "-fstack-usage", "-c", "ensemble.c"], cwd=tmp_path, check=True)
    lines = subprocess.run(["nm", "-S", "ensemble.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[1:] for line in lines.splitlines() if len(line.split()) == 4]
    assert sum(int(size, 16) for size, kind, _ in symbols if kind in "bB") == made.ram
    arrays = sum(int(size, 16) for size, kind, name in symbols if kind == "r" and re.fullmatch(r"m\d.*_[a-z]+", name))
    assert arrays + sum(len(name) + 1 for name in ensemble.classes) == made.flash
    assert f"Memory: {made.ram} bytes of RAM" in (tmp_path / "ensemble.h").read_text()
    usage = [int(line.split("\t")[1]) for line in (tmp_path / "ensemble.su").read_text().splitlines()]
    assert sum(usage) < 1024


def test_a_rule_that_stops_at_once_leaves_the_other_members_out(tmp_path: Path) -> None:
    members = [linear_network(seed) for seed in range(3)]
    both = [write_c(ensemble_of(*members, rule=rule), tmp_path) for rule in RULES[:2]]
    assert [one.members for one in both] == [3, 1]
    assert both[1].flash < both[0].flash / 2


NAMES = ('"); abort(); ("', "*/ int main", "a\\", "??/", "%s%n", "größe 大", "\\012", "end")


def test_names_of_classes_stay_names(tmp_path: Path) -> None:
    c_program.need("cc")
    write_c(ensemble_of(linear_network(0, len(NAMES)), classes=NAMES), tmp_path)
    (tmp_path / "names.c").write_text(
        '#include "ensemble.h"\n#include <stdio.h>\n'
        "int main(void) { int k; for (k = 0; k < PREDICT_CLASSES; k++) puts(class_names[k]); return 0; }\n"
    )
    command = ["cc", *c_program.STRICT, "-o", "names", "names.c", "ensemble.c", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True)
    out = subprocess.run([tmp_path / "names"], capture_output=True, check=True).stdout
    assert out.decode().splitlines() == list(NAMES)


@given(st.text())
@examples(100)
def test_strings_hold_no_character_of_c(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    literal = string_literal(text)
    assert re.fullmatch(r'"([ !#->@-\[\]-~]|\\[0-7]{3})*"', literal)
    octal = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), literal[1:-1].encode())
    assert octal.decode() == text


@pytest.mark.parametrize("value", [0.1, -1e-40, 16777216.0, 3.4e38, 1.0])
def test_floats_read_back(value: float) -> None:
    assert np.float32(float_literal(value).removesuffix("f")) == np.float32(value)


def test_floats_beyond_the_range_are_infinite() -> None:
    assert [float_literal(value) for value in (1e300, -1e300)] == ["INFINITY", "-INFINITY"]


class TestCommand:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        ensemble = ensemble_of(linear_network(0), linear_network(1), rule=RULES[2], combiner=COMBINERS[0])
        packed.save(ensemble, tmp_path / "ensemble.sparsemble")
        return tmp_path / "ensemble.sparsemble"

    def call(self, *words: object) -> str:
        result = CliRunner().invoke(app, ["export", *map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    def test_writes_the_files_and_says_what_they_need(self, file: Path, tmp_path: Path) -> None:
        told = self.call(file, "--format", "c", "--out", tmp_path / "c")
        assert "bytes of RAM" in told
        assert "pixels  2 x 2 x 3 bytes, rows from the top" in told
        found = json.loads(self.call(file, "--format", "c", "--out", tmp_path / "c", "--json"))
        assert found == CExport(**found).to_dict()
        assert Path(found["source"]) == tmp_path / "c" / "ensemble.c"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["{file}", "--format", "c", "--out", "{file}c", "--max-flash", 0], "0 KB of flash hold nothing"),
            (["{file}", "--format", "rust"], r'--format "rust" is not known'),
            (["{file}", "--max-flash", 3], "--out and --max-flash are for --format c"),
            (["{file}", "--format", "c", "--values", "int8"], "--values needs the folder of the run"),
            (["{file}"], "is not the folder of a finished run"),
        ],
    )
    def test_bad_input_gives_a_sentence(self, file: Path, words: list[object], said: str) -> None:
        with pytest.raises(InputError, match=said):
            self.call(*(str(word).format(file=file) for word in words))

    def test_a_limit_of_flash(self, tmp_path: Path) -> None:
        ensemble = ensemble_of(*(every_operation(seed) for seed in range(2)))
        with pytest.raises(InputError, match=r"take (\d+) KB of flash, more than the limit of 1 KB; --max-flash \1"):
            write_c(ensemble, tmp_path / "c", max_flash_kb=1)
        assert not (tmp_path / "c").exists()

    def test_what_cannot_be_written_gives_a_sentence(self, tmp_path: Path) -> None:
        ensemble = ensemble_of(linear_network(0))
        for change, said in (
            ({"combiner": {"name": "vote"}}, 'combiner "vote" cannot be written as C; known are mean_probability'),
            ({"rule": {"name": "coin"}}, 'stopping rule "coin" cannot be written as C; known are never'),
        ):
            with pytest.raises(InputError, match=said):
                write_c(replace(ensemble, **change), tmp_path)

    def test_it_says_what_c_does_not_do(self, tmp_path: Path) -> None:
        ensemble = replace(ensemble_of(linear_network(0)), preprocessing=Preprocessing(mode="RGB", resize=3, size=2))
        made = write_c(ensemble, tmp_path)
        assert "turned upright, colour, short side resized to 3, centre of 2 x 2 cut out; C does none of" in made.pixels
        assert made.pixels in (tmp_path / "ensemble.h").read_text()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, compiled with an ensemble of two members."""
    c_program.need("cc")
    folder = tmp_path_factory.mktemp("example")
    write_c(ensemble_of(linear_network(0), linear_network(1), combiner=COMBINERS[0]), folder)
    command = ["cc", *c_program.STRICT, "-I", folder, "-o", folder / "edge", c_program.EXAMPLE]
    subprocess.run([*command, folder / "ensemble.c", "-lm"], check=True)
    return folder / "edge"


class TestExample:
    def test_it_reads_an_image_and_prints_label_and_probabilities(self, program: Path, tmp_path: Path) -> None:
        ensemble = ensemble_of(linear_network(0), linear_network(1), combiner=COMBINERS[0])
        pixels = random_pixels(ensemble.members[0], 1)
        (tmp_path / "a.ppm").write_bytes(b"P6\n# by hand\n2 2\n255\n" + pixels.tobytes())
        out = subprocess.run([program, tmp_path / "a.ppm"], capture_output=True, text=True, check=True).stdout
        decisions, probabilities = decide(ensemble, member_logits(ensemble, pixels))
        label = decisions[0, 0]
        first, *rest = out.splitlines()
        assert first == f"{ensemble.classes[label]} ({100 * probabilities[0, label]:.1f} %, 2 of 2 members)"
        assert [line.split()[1] for line in rest] == list(ensemble.classes)
        np.testing.assert_allclose([float(line.split()[0]) for line in rest], probabilities[0], atol=1e-4)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (None, "cannot be opened"),
            (b"", "is no PPM image (P6)"),
            (b"P5 2 2 255 0000", "is no PPM image (P6)"),
            (b"P6 2", "is no PPM image (P6)"),
            (b"P6 3 2 255 " + bytes(18), "has 3 x 2 pixels up to 255; the ensemble takes 2 x 2 up to 255"),
            (b"P6 2 2 65535 " + bytes(24), "has 2 x 2 pixels up to 65535"),
            (b"P6 2 2 255 " + bytes(11), "is truncated"),
        ],
    )
    def test_bad_input_gives_a_sentence(self, program: Path, tmp_path: Path, content: bytes | None, said: str) -> None:
        if content is not None:
            (tmp_path / "a.ppm").write_bytes(content)
        ended = subprocess.run([program, tmp_path / "a.ppm"], capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: ")
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1
