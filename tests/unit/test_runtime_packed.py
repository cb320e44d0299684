"""The packed file: what is saved is loaded, in few bytes, and every other file is refused with a sentence."""

import contextlib
import copy
import hashlib
import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import index_coding, packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.format.quantization import VALUES, Values
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
    Node,
    Relu,
    Steps,
    Weight,
)
from sparsemble.runtime.predictor import Predictor
from tests.helpers import FULL, examples
from tests.processes import run_python

few = examples(60, derandomize=True)


def weight(shape: tuple[int, ...], sparsity: float, rng: np.random.Generator) -> Weight:
    return Weight.from_dense(rng.standard_normal(shape) * (rng.random(shape) >= sparsity))


def network(seed: int = 0, sparsity: float = 0.8) -> Network:
    """Every kind of node, once or more."""
    rng = np.random.default_rng(seed)

    def floats(count: int) -> np.ndarray:
        return rng.standard_normal(count).astype(np.float32)

    nodes: list[Node] = [
        Input(),
        Affine((0,), floats(2), floats(2)),
        Convolution((1,), weight((6, 2, 3, 3), 0.1, rng), floats(6), (1, 1), (1, 1)),
        Relu((2,)),
        MaxPool((3,), (3, 3), (2, 2), (1, 1)),
        Convolution((4,), weight((6, 6, 3, 3), sparsity, rng), floats(6), (1, 1), (1, 1)),
        Add((5, 4)),
        AveragePool((6,), (4, 4), (4, 4)),
        Flatten((7,)),
        Linear((8,), weight((5, 6), 0.5, rng), floats(5)),
    ]
    return Network((2, 8, 8), tuple(nodes))


def make_ensemble(members: int = 2) -> PackedEnsemble:
    return PackedEnsemble(
        members=tuple(network(i) for i in range(members)),
        combiner={"name": "mean_probability"},
        rule={"name": "confidence", "threshold": 0.9},
        classes=("ant", "bee", "cat", "döner", "elk"),
        parent_weights=5000,
        recipe={"seed": 0},
        provenance={"made": "by a test"},
    )


def in_8_bits(members: int = 2) -> PackedEnsemble:
    """The same with results in 8 bits, one of them kept through maxima."""
    steps = {3: Steps(0.125, 0), 6: Steps(0.5, 128)}
    made = make_ensemble(members)
    return replace(made, members=tuple(Network(m.image, m.nodes, steps) for m in made.members))


def one_layer(weights: Any) -> PackedEnsemble:
    """An ensemble of one linear layer on images of one row."""
    outputs, inputs = np.shape(weights)
    layer = Linear((1,), Weight.from_dense(np.asarray(weights)), np.zeros(outputs, np.float32))
    return PackedEnsemble(
        members=(Network((inputs, 1, 1), (Input(), Flatten((0,)), layer)),),
        combiner={"name": "mean_logit"},
        rule={"name": "never"},
        classes=tuple(map(str, range(outputs))),
        parent_weights=max(1, outputs * inputs),
    )


def layer_of(ensemble: PackedEnsemble) -> np.ndarray:
    return ensemble.members[0].weights()[0].dense()


def same(a: PackedEnsemble, b: PackedEnsemble) -> bool:
    def flat(one: PackedEnsemble) -> list[Any]:
        found: list[Any] = [one.combiner, one.rule, one.classes, one.parent_weights, one.recipe, one.provenance]
        for member in one.members:
            found.append(member.steps)
            for node in member.nodes:
                found += [type(node), node.inputs, packed.node_to_dict(node)]
                found += [floats.tobytes() for floats in packed.node_constants(node)]
                if isinstance(node, Convolution | Linear):
                    found += [
                        None if part is None else part.tobytes() for part in (node.weight.integers, node.weight.scales)
                    ]
                    found += [node.weight.shape, node.weight.positions.tobytes(), node.weight.values.tobytes()]
        return found

    return flat(a) == flat(b)


class TestIndexCoding:
    @given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 999))
    @few
    def test_every_coding_returns_the_positions(self, size: int, density: float, seed: int) -> None:
        found = np.flatnonzero(np.random.default_rng(seed).random(size) < density).astype(np.uint32)
        for coding, parameter in [("bitmap", 0), *(("rice", k) for k in (0, 1, 3, 7, 13))]:
            stored = index_coding.encode(found, size, coding, parameter) + b"more"
            back, used = index_coding.decode(memoryview(stored), size, len(found), coding, parameter)
            assert np.array_equal(back, found)
            assert used == len(stored) - 4

    @pytest.mark.parametrize("density", [0.01, 0.025, 0.1, 0.3])
    def test_takes_little_more_than_the_entropy(self, density: float) -> None:
        size = 400_000
        found = np.flatnonzero(np.random.default_rng(0).random(size) < density).astype(np.uint32)
        coding, parameter = index_coding.best_coding(found, size, 16)
        bits = 8 * len(index_coding.encode(found, size, coding, parameter)) / len(found)
        entropy = -math.log2(density) - (1 - density) / density * math.log2(1 - density)
        assert coding == "rice"
        assert bits < entropy + 0.08

    def test_the_smallest_coding_is_chosen(self) -> None:
        rng = np.random.default_rng(0)
        for density, expected in ((1.0, "dense"), (0.5, "bitmap"), (0.02, "rice")):
            found = np.flatnonzero(rng.random(5000) < density).astype(np.uint32)
            coding, parameter = index_coding.best_coding(found, 5000, 16)
            assert coding == expected
            sizes = {("bitmap", 0), *(("rice", k) for k in range(14))}
            least = min(len(index_coding.encode(found, 5000, *one)) for one in sizes)
            if coding != "dense":
                assert len(index_coding.encode(found, 5000, coding, parameter)) == least


class TestRoundTrip:
    @pytest.mark.parametrize("values", VALUES)
    def test_what_is_saved_is_loaded(self, tmp_path: Path, values: Values) -> None:
        path = tmp_path / "a.sparsemble"
        packed.save(make_ensemble(), path, values=values)
        found = packed.load(path)
        assert same(found, packed.round_weights(make_ensemble(), values))
        if values == "float32":
            assert same(found, make_ensemble())
        packed.save(found, tmp_path / "b.sparsemble", values=values)
        assert (tmp_path / "b.sparsemble").read_bytes() == path.read_bytes()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.sparsemble", "b.sparsemble"]

    def test_results_in_8_bits_are_a_version_that_older_readers_refuse(self, tmp_path: Path) -> None:
        path = tmp_path / "a.sparsemble"
        packed.save(in_8_bits(), path, values="int8")
        found = packed.load(path)
        assert same(found, packed.round_weights(in_8_bits(), "int8"))
        assert found.members[0].steps == {3: Steps(0.125, 0), 4: Steps(0.125, 0), 6: Steps(0.5, 128)}
        assert (found.arithmetic, packed.describe(path)["version"]) == ("int8", 2)
        packed.save(found, tmp_path / "b.sparsemble", values="int8")
        assert (tmp_path / "b.sparsemble").read_bytes() == path.read_bytes()
        packed.save(make_ensemble(), path, values="int8")
        assert (packed.load(path).arithmetic, packed.describe(path)["version"]) == ("float32", 1)

    def test_8_bit_arithmetic_needs_weights_of_8_bits(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeInputError, match="8-bit arithmetic needs int8 values of the weights, got float16"):
            packed.save(in_8_bits(), tmp_path / "a.sparsemble")
        assert list(tmp_path.iterdir()) == []

    def test_describe_returns_the_header(self, tmp_path: Path) -> None:
        packed.save(make_ensemble(), tmp_path / "a.sparsemble")
        header = packed.describe(tmp_path / "a.sparsemble")
        assert header["bytes"] == (tmp_path / "a.sparsemble").stat().st_size
        assert header["classes"] == list(make_ensemble().classes)
        assert header["nonzeros"] == packed.round_weights(make_ensemble(), "float16").nonzeros
        assert header["sparsity"] == pytest.approx(1 - header["nonzeros"] / 5000)

    def test_weights_that_round_to_0_are_dropped_and_not_counted(self, tmp_path: Path) -> None:
        packed.save(one_layer([[1e-9], [1.0]]), tmp_path / "a.sparsemble")
        assert packed.load(tmp_path / "a.sparsemble").nonzeros == 1

    def test_an_ensemble_of_four_at_a_tenth_takes_less_than_8_percent(self, tmp_path: Path) -> None:
        """Members at 0.975; the issue's target, on layers of a sixteenth of ResNet-18's size."""
        rng = np.random.default_rng(0)
        shape = (128, 128, 3, 3)

        def member() -> Network:
            nodes: list[Node] = [Input()]
            nodes += [
                Convolution((i,), weight(shape, 0.975, rng), np.zeros(128, np.float32), (1, 1), (1, 1))
                for i in range(4)
            ]
            nodes += [
                AveragePool((4,), (4, 4), (4, 4)),
                Flatten((5,)),
                Linear((6,), weight((10, 128), 0.975, rng), np.zeros(10, np.float32)),
            ]
            return Network((128, 4, 4), tuple(nodes))

        total = 4 * math.prod(shape) + 1280
        made = PackedEnsemble(
            members=tuple(member() for _ in range(4)),
            combiner={"name": "mean_probability"},
            rule={"name": "never"},
            classes=tuple("abcdefghij"),
            parent_weights=total,
        )
        packed.save(made, tmp_path / "a.sparsemble")
        assert (tmp_path / "a.sparsemble").stat().st_size < 0.08 * 4 * total

    @pytest.mark.parametrize(
        ("value", "values", "words"),
        [
            (np.nan, "float16", "member 1, operation 2 has a weight that is no number"),
            (np.inf, "int8", "member 1, operation 2 has a weight that is no number"),
            (1e6, "float16", r"size 1e\+06, too much for float16"),
            (3.4028235e38, "int8", r"size 3.40282e\+38, too much for int8"),
        ],
    )
    def test_weights_that_cannot_be_stored_are_refused(
        self, tmp_path: Path, value: float, values: Values, words: str
    ) -> None:
        with pytest.raises(RuntimeInputError, match=words):
            packed.save(one_layer([[value], [1.0]]), tmp_path / "a.sparsemble", values=values)
        assert list(tmp_path.iterdir()) == []


class TestSteps:
    """What a file may not say of results in 8 bits."""

    def refused(self, tmp_path: Path, change: Callable[[dict[str, Any]], None], **settings: Any) -> str:
        packed.save(in_8_bits(1), tmp_path / "a.sparsemble", values="int8")
        header, body = split_file((tmp_path / "a.sparsemble").read_bytes())
        change(header)
        (tmp_path / "a.sparsemble").write_bytes(join_file(header, body, **settings))
        with pytest.raises(RuntimeInputError) as refused:
            packed.load(tmp_path / "a.sparsemble")
        return str(refused.value)

    @pytest.mark.parametrize(
        ("steps", "words"),
        [
            ({"scale": 0, "zero": 0}, "scale = 0.0 of 8-bit steps must be a positive, normal float32"),
            ({"scale": -0.5, "zero": 0}, "scale = -0.5 of 8-bit steps must be a positive, normal float32"),
            ({"scale": 1e-40, "zero": 0}, "scale = 1e-40 of 8-bit steps must be a positive, normal float32"),
            ({"scale": 0.1, "zero": 0}, "scale = 0.1 of 8-bit steps must be a positive, normal float32"),
            ({"scale": 1e39, "zero": 0}, "scale = 1e+39 of 8-bit steps must be a positive, normal float32"),
            ({"scale": math.nan, "zero": 0}, "the header holds NaN, which is no number"),
            ({"scale": math.inf, "zero": 0}, "the header holds Infinity, which is no number"),
            ({"scale": "0.5", "zero": 0}, "steps: scale = '0.5' must be a finite number"),
            ({"scale": True, "zero": 0}, "steps: scale = True must be a finite number"),
            ({"scale": 10**400, "zero": 0}, "must be a finite number"),
            ({"zero": 0}, "member 1, operation 6: steps lacks scale"),
            ({"scale": 0.5}, "member 1, operation 6: steps lacks zero"),
            ({"scale": 0.5, "zero": -1}, "steps: zero = -1 must be a whole number from 0 to 255"),
            ({"scale": 0.5, "zero": 256}, "steps: zero = 256 must be a whole number from 0 to 255"),
            ({"scale": 0.5, "zero": 1.0}, "steps: zero = 1.0 must be a whole number from 0 to 255"),
            (None, "member 1, operation 6: steps = None must be a table"),
        ],
    )
    def test_steps_that_cannot_be(self, tmp_path: Path, steps: Any, words: str) -> None:
        message = self.refused(tmp_path, lambda header: header["members"][0][6].update(steps=steps))
        assert words in message

    def test_an_infinite_scale_as_a_number_of_json(self, tmp_path: Path) -> None:
        packed.save(in_8_bits(1), tmp_path / "a.sparsemble", values="int8")
        _, body = split_file((tmp_path / "a.sparsemble").read_bytes())
        header = (tmp_path / "a.sparsemble").read_bytes()[packed.PREFIX.size : -len(body)]
        encoded = header.replace(b'"scale":0.125', b'"scale":1e999', 1)
        prefix = packed.PREFIX.pack(packed.MAGIC, 2, len(encoded), hashlib.sha256(encoded).digest())
        (tmp_path / "a.sparsemble").write_bytes(prefix + encoded + body)
        with pytest.raises(RuntimeInputError, match="operation 3: steps: scale = inf must be a finite number"):
            packed.load(tmp_path / "a.sparsemble")

    @pytest.mark.parametrize("index", [0, 9])
    def test_image_and_logits_are_in_float32(self, tmp_path: Path, index: int) -> None:
        steps = {"scale": 0.5, "zero": 0}
        message = self.refused(tmp_path, lambda header: header["members"][0][index].update(steps=steps))
        assert f"operation {index} cannot be stored in 8 bits" in message

    def test_maxima_have_the_steps_of_what_they_read(self, tmp_path: Path) -> None:
        steps = {"scale": 0.5, "zero": 0}
        message = self.refused(tmp_path, lambda header: header["members"][0][4].update(steps=steps))
        assert message.startswith("member 1: operation 4 keeps the 8-bit steps of its input")

    def test_values_that_are_no_integers(self, tmp_path: Path) -> None:
        packed.save(make_ensemble(1), tmp_path / "a.sparsemble")
        header, body = split_file((tmp_path / "a.sparsemble").read_bytes())
        header["members"][0][3]["steps"] = {"scale": 0.5, "zero": 0}
        (tmp_path / "a.sparsemble").write_bytes(join_file(header, body))
        with pytest.raises(
            RuntimeInputError, match=r"member 1, operation 3 has steps, but the values are float16 and must be int8"
        ):
            packed.load(tmp_path / "a.sparsemble")

    def test_a_version_that_has_none(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, lambda header: None, version=1)
        assert message == "member 1, operation 3 has steps, which begin with version 2; this file has 1"


class TestInt8:
    @given(st.integers(1, 5), st.integers(1, 40), st.floats(0, 1), st.floats(-40, 36), st.integers(0, 999))
    @few
    def test_a_weight_moves_by_half_a_scale_at_most_and_never_again(
        self, outputs: int, inputs: int, sparsity: float, exponent: float, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        size = 10 ** (exponent + rng.uniform(-2, 2, (outputs, 1)))
        made = one_layer((size * weight((outputs, inputs), sparsity, rng).dense()).astype(np.float32))
        found = packed.round_weights(made, "int8")
        largest = np.abs(layer_of(made)).max(1, keepdims=True).astype(float)
        half = 0.5 * np.maximum(largest / 127 * (1 + 2**-15), np.finfo(np.float32).tiny)
        assert (np.abs(layer_of(found) - layer_of(made).astype(float)) <= half).all()
        assert same(packed.round_weights(found, "int8"), found)

    def test_every_value_is_its_output_s_scale_times_a_whole_number(self) -> None:
        found = layer_of(
            packed.round_weights(one_layer([[254, -3, 0.9, 2.1], [0, 0, 0, 0], [0, -127e-6, 5.4e-6, 0]]), "int8")
        )
        assert np.array_equal(found[:2], [[254, -4, 0, 2], [0, 0, 0, 0]])
        np.testing.assert_allclose(found[2], [0, -127e-6, 5e-6, 0], rtol=2**-15)

    def test_an_output_without_weights_has_scale_0(self, tmp_path: Path) -> None:
        path = tmp_path / "a.sparsemble"
        packed.save(one_layer([[0, 0], [2, 0], [0, 0]]), path, values="int8")
        _, body = split_file(path.read_bytes())
        scale, *rest = np.frombuffer(body[-24:], "<f4")[[1, 0, 2, 3, 4, 5]]
        assert 127 * scale == pytest.approx(2, rel=2**-15)
        assert rest == [0] * 5
        assert np.array_equal(layer_of(packed.load(path)) != 0, [[False, False], [True, False], [False, False]])

    def test_takes_less_than_float16(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        made, sizes = one_layer(weight((50, 800), 0.9, rng).dense()), {}
        for values in VALUES:
            packed.save(made, tmp_path / values, values=values)
            sizes[values] = (tmp_path / values).stat().st_size
        count = made.nonzeros
        assert sizes["float32"] - sizes["float16"] == pytest.approx(2 * count, abs=100)
        # A byte less for each weight, 4 more for each output; some weights are 0 now.
        assert sizes["float16"] - sizes["int8"] == pytest.approx(count - 4 * 50, rel=0.03)

    @pytest.mark.parametrize(
        ("scale", "words"),
        [
            (np.nan, "member 1, operation 2 has a constant that is no number"),
            (np.inf, "member 1, operation 2 has a constant that is no number"),
            (-1.0, "member 1, operation 2 has a scale of -1; 0 and 1.17549e-38 or more are read"),
            (1e-40, r"member 1, operation 2 has a scale of 9.99995e-41; 0 and 1.17549e-38 or more are read"),
            (3e38, "member 1, operation 2 has a weight that is no number"),
            (0.0, "member 1, operation 2 has other than 6 weights that are not 0"),
        ],
    )
    def test_scales_that_cannot_be_are_refused(self, tmp_path: Path, scale: float, words: str) -> None:
        assert self.forged(tmp_path, 6, np.array([scale], "<f4").tobytes()) == words

    def test_minus_128_is_refused(self, tmp_path: Path) -> None:
        message = self.forged(tmp_path, 0, b"\x80")
        assert message == "member 1, operation 2 has a weight of -128 scales; -127 to 127 are read"

    def forged(self, tmp_path: Path, place: int, content: bytes) -> str:
        """Put something else among six values, scales and biases of a layer, with the right checksums."""
        packed.save(one_layer([[1, 2, 3], [4, 5, 6]]), tmp_path / "a.sparsemble", values="int8")
        header, body = split_file((tmp_path / "a.sparsemble").read_bytes())
        assert [part["size"] for part in header["parts"]] == [0, 6, 16]
        body = body[:place] + content + body[place + len(content) :]
        (tmp_path / "a.sparsemble").write_bytes(join_file(header, body))
        with pytest.raises(RuntimeInputError) as refused:
            packed.load(tmp_path / "a.sparsemble")
        return str(refused.value)


def split_file(content: bytes) -> tuple[dict[str, Any], bytes]:
    _, _, length, _ = packed.PREFIX.unpack_from(content)
    begin = packed.PREFIX.size
    return json.loads(content[begin : begin + length]), content[begin + length :]


def join_file(header: Any, body: bytes, *, version: int = packed.VERSION, fix: bool = True) -> bytes:
    """Return a file whose checksums are right, so that what is behind them is reached."""
    if fix and isinstance(header, dict) and isinstance(header.get("parts"), list):
        for part in header["parts"]:
            if isinstance(part, dict) and isinstance(part.get("offset"), int) and isinstance(part.get("size"), int):
                begin, size = part["offset"], part["size"]
                if 0 <= begin <= len(body) and 0 <= size <= len(body):
                    part["sha256"] = hashlib.sha256(body[begin : begin + size]).hexdigest()
    encoded = json.dumps(header).encode()
    prefix = packed.PREFIX.pack(packed.MAGIC, version, len(encoded), hashlib.sha256(encoded).digest())
    return prefix + encoded + body


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += paths_in(inner, (*path, key))
    return found


NUMBERS = [0, 1, -1, 2, 3, 7, 255, 2**16, 2**20, 2**31, 2**32, 2**40, 2**63, 10**30, -(10**30), 0.5, 1e300]
WORDS = ["", "rice", "dense", "bitmap", "float32", "int8", "input", "add", "linear", "convolution", "x" * 2000]
STRANGE: list[Any] = [*NUMBERS, *WORDS, True, None, [], {}, [1, 2], [[]], {"name": "die"}]


def forge_(header: dict[str, Any], how: int, rng: np.random.Generator) -> None:
    """Replace a value of the header by a strange one, remove it, or copy another one over it."""
    every = paths_in(header)
    path, other = (every[rng.integers(0, len(every))] for _ in range(2))
    inner, value = header, header
    for key in path[:-1]:
        inner = inner[key]
    for key in other:
        value = value[key]
    if how == 4:
        inner[path[-1]] = copy.deepcopy(STRANGE[rng.integers(0, len(STRANGE))])
    elif how == 5:
        del inner[path[-1]]
    else:
        inner[path[-1]] = copy.deepcopy(value)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a damaged or forged file."""
    how = rng.integers(0, 7)
    if how == 0:
        return content[: rng.integers(0, len(content))]
    if how == 1:
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 9)):
            damaged[rng.integers(0, len(damaged))] ^= 1 << int(rng.integers(0, 8))
        return bytes(damaged)
    if how == 2:
        return content + bytes(rng.integers(0, 256, rng.integers(1, 50), dtype=np.uint8))
    header, body = split_file(content)
    version = int(packed.PREFIX.unpack_from(content)[1]) if rng.random() < 0.95 else int(rng.integers(0, 4))
    if how == 3:
        damaged = bytearray(body)
        for _ in range(rng.integers(1, 20)):
            damaged[rng.integers(0, len(damaged))] = int(rng.integers(0, 256))
        return join_file(header, bytes(damaged), version=version)
    for _ in range(rng.integers(1, 4)):
        with contextlib.suppress(KeyError, IndexError, TypeError):
            forge_(header, how, rng)
    cut = int(rng.integers(0, len(body) + 1)) if rng.random() < 0.2 else len(body)
    return join_file(header, body[:cut], version=version, fix=bool(rng.random() < 0.9))


def whole_files(folder: Path) -> list[bytes]:
    """The same ensemble in every kind of values and in 8 bits, and one that is made for files."""
    path, found = folder / "whole.sparsemble", []
    for values in VALUES:
        packed.save(make_ensemble(), path, values=values)
        found.append(path.read_bytes())
    packed.save(in_8_bits(), path, values="int8")
    found.append(path.read_bytes())
    of_files = Preprocessing(mode="RGB", resize=4, size=1)
    packed.save(replace(one_layer(np.eye(2, 3)), preprocessing=of_files), path)
    return [*found, path.read_bytes()]


def load_mutated(count: int, seed: int, folder: Path) -> tuple[int, int]:
    """Load mutated files; return how many were refused, and how many were files like any other."""
    contents, rng = whole_files(folder), np.random.default_rng(seed)
    path, refused, fine = folder / "mutated.sparsemble", 0, 0
    for i in range(count):
        path.write_bytes(mutated(contents[i % len(contents)], rng))
        try:
            packed.load(path)
            fine += 1
        except RuntimeInputError as error:
            sentence = str(error)
            assert sentence
            assert "\n" not in sentence
            assert len(sentence) < 400
            refused += 1
    return refused, fine


class TestHostile:
    def test_mutated_files_are_refused_with_a_sentence_or_are_files_like_any_other(self, tmp_path: Path) -> None:
        count = 2000 if FULL else 500
        refused, fine = load_mutated(count, 0, tmp_path)
        assert refused > 0.75 * count
        assert refused + fine == count

    @pytest.mark.slow
    def test_100000_mutated_files(self, tmp_path: Path) -> None:
        """In a process that checks no types, which takes a tenth of the time."""
        code = "import sys, pathlib; from tests.unit.test_runtime_packed import load_mutated as load; "
        result = run_python(f"{code} print(sum(load(100_000, 1, pathlib.Path(sys.argv[1]))))", tmp_path)
        assert result.stdout.strip() == "100000", result.stderr

    @pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
    def test_mutated_files_that_load_run_too(self, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SPARSEMBLE_CACHE", str(tmp_path / "cache"))
        contents, rng = whole_files(tmp_path), np.random.default_rng(3)
        path, ran = tmp_path / "mutated.sparsemble", 0
        while ran < count:
            path.write_bytes(mutated(contents[ran % len(contents)], rng))
            with contextlib.suppress(RuntimeInputError):
                predictor = Predictor(packed.load(path))
                images = rng.random((19, *predictor.ensemble.image), dtype=np.float32)
                # What leaves its buffers would end this process, or make a second run differ.
                found = [predictor.member_logits(part) for part in (images, images, images[:1])]
                assert np.array_equal(found[0], found[1], equal_nan=True)
                # Beyond the largest float32 the order of operations matters: infinity times 0 is NaN.
                finite = np.isfinite(found[0][:, :1]) & np.isfinite(found[2])
                assert np.array_equal(found[0][:, :1][finite], found[2][finite])
                ran += 1

    def test_takes_no_more_memory_than_documented(self, tmp_path: Path) -> None:
        contents, rng = whole_files(tmp_path), np.random.default_rng(2)
        path = tmp_path / "mutated.sparsemble"
        tracemalloc.start()
        try:
            for i in range(150 if FULL else 50):
                damaged = mutated(contents[i % len(contents)], rng)
                path.write_bytes(damaged)
                tracemalloc.reset_peak()
                with contextlib.suppress(RuntimeInputError):
                    packed.load(path)
                assert tracemalloc.get_traced_memory()[1] < 64 * 2**20 + 16 * len(damaged)
        finally:
            tracemalloc.stop()

    def peak(self, path: Path) -> int:
        """Return the most bytes that were taken while a file was read."""
        tracemalloc.start()
        try:
            with contextlib.suppress(RuntimeInputError):
                packed.load(path)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(("values", "sparsity"), [("float16", 0.9), ("int8", 0.0), ("int8", 0.5), ("int8", 0.9)])
    def test_a_large_file_keeps_to_it_too(self, values: Values, sparsity: float, tmp_path: Path) -> None:
        """A smaller constant than promised: 64 MB would hide what grows with the file."""
        path = tmp_path / "large.sparsemble"
        made = one_layer(weight((1000, 2048), sparsity, np.random.default_rng(0)).dense())
        packed.save(made, path, values=values)
        assert self.peak(path) < 8 * 2**20 + 16 * path.stat().st_size

    @pytest.mark.parametrize(("coding", "parameter"), [("bitmap", 0), ("rice", 0)])
    def test_more_positions_than_announced_take_no_memory(self, coding: str, parameter: int, tmp_path: Path) -> None:
        path = tmp_path / "a.sparsemble"
        packed.save(one_layer([[0, 1, 0]]), path, values="int8")
        header, body = split_file(path.read_bytes())
        size = 2**21
        table = header["members"][0][2]["weight"]
        table.update(shape=[1, 8 * size], coding=coding, parameter=parameter)
        header["parts"][0]["size"] = size
        for i, end in ((1, size), (2, size + 1)):
            header["parts"][i]["offset"] = end
        path.write_bytes(join_file(header, b"\xff" * size + body[-9:]))
        assert self.peak(path) < 8 * 2**20 + 16 * path.stat().st_size
        with pytest.raises(RuntimeInputError):
            packed.load(path)

    def change(self, tmp_path: Path, change: Callable[[dict[str, Any]], None], **settings: Any) -> str:
        packed.save(make_ensemble(), tmp_path / "a.sparsemble")
        header, body = split_file((tmp_path / "a.sparsemble").read_bytes())
        change(header)
        (tmp_path / "a.sparsemble").write_bytes(join_file(header, body, **settings))
        with pytest.raises(RuntimeInputError) as refused:
            packed.load(tmp_path / "a.sparsemble")
        return str(refused.value)

    def test_a_newer_version(self, tmp_path: Path) -> None:
        assert "written by a newer sparsemble; this one reads 2" in self.change(tmp_path, lambda _: None, version=3)
        assert "this file has version 0; this sparsemble reads 1 to 2" in self.change(
            tmp_path, lambda _: None, version=0
        )

    def test_another_sparsity_than_it_says(self, tmp_path: Path) -> None:
        message = self.change(tmp_path, lambda header: header.update(nonzeros=header["nonzeros"] - 1))
        assert "weights are there" in message

    def test_a_sparsity_that_no_float_holds(self, tmp_path: Path) -> None:
        message = self.change(tmp_path, lambda header: header.update(sparsity=10**400))
        assert message.startswith("sparsity must be a number")

    def test_an_operation_from_elsewhere_is_named_with_its_place(self, tmp_path: Path) -> None:
        message = self.change(tmp_path, lambda header: header["members"][1][4].update(kind="attention"))
        assert message == "member 2, operation 4 is of the kind 'attention', which this sparsemble does not know"

    def test_less_than_two_classes(self, tmp_path: Path) -> None:
        message = self.change(tmp_path, lambda header: header.update(classes=["one"]))
        assert message == "classes must be a list of 2 to 100000 names; there are 1"

    @pytest.mark.parametrize("character", ["\x1b", "\n", "\x00", "\x7f", "\u2028", "\u202e", "\ud800"])
    def test_classes_that_would_steer_a_terminal(self, tmp_path: Path, character: str) -> None:
        name = f"[/]{character}x"
        message = self.change(tmp_path, lambda header: header.update(classes=[*"abcd", name]))
        assert message == f"the class {name!a} has a control character in its name; printable ones are taken"
        with pytest.raises(RuntimeInputError, match="has a control character in its name"):
            replace(make_ensemble(), classes=(*"abcd", name))

    def test_names_of_settings_reach_no_terminal_as_they_are(self, tmp_path: Path) -> None:
        message = self.change(tmp_path, lambda header: header.update(stop={"name": "\x1b[2J\n\ud800"}))
        assert message.startswith('stopping rule "\\x1b[2J\\n\\ud800" is not known')

    def test_weights_that_would_fill_the_memory(self, tmp_path: Path) -> None:
        def large(header: dict[str, Any]) -> None:
            header["members"][0][2]["weight"].update(shape=[30000, 30000, 1, 1], nonzeros=10**8)

        assert "takes 200000000 bytes, but" in self.change(tmp_path, large)

    def test_images_that_would_fill_the_memory(self, tmp_path: Path) -> None:
        packed.save(make_ensemble(), tmp_path / "a.sparsemble")
        with pytest.raises(
            RuntimeInputError, match=r"the results of one image take \d+ bytes, more than max_memory = 1000"
        ):
            packed.load(tmp_path / "a.sparsemble", max_memory=1000)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "this is no packed ensemble"),
            (b"PK\x03\x04" + bytes(100), "this is no packed ensemble"),
            (packed.PREFIX.pack(packed.MAGIC, 1, 2**31, bytes(32)), "the header has a length of 2147483648 bytes"),
            (join_file([1], b""), "the header is no table"),
            (join_file({"values": "float64"}, b""), "values = 'float64' must be one of float16, float32, int8"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path: Path, content: bytes, words: str) -> None:
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(RuntimeInputError, match=words):
            packed.load(tmp_path / "a")

    @pytest.mark.parametrize(
        ("encoded", "words"),
        [
            (b'{"a": NaN}', "the header holds NaN, which is no number"),
            (b'{"a": 1, "a": 2}', "the header names something twice"),
            (b"[" * 100_000, "nested too deeply"),
            (b'{"a": ' + b"9" * 5000 + b"}", "the header is no JSON"),
            (b'{"a": "\xff"}', "the header is no JSON"),
        ],
    )
    def test_invalid_headers_are_refused(self, tmp_path: Path, encoded: bytes, words: str) -> None:
        prefix = packed.PREFIX.pack(packed.MAGIC, 1, len(encoded), hashlib.sha256(encoded).digest())
        (tmp_path / "a").write_bytes(prefix + encoded)
        with pytest.raises(RuntimeInputError, match=words):
            packed.load(tmp_path / "a")

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeInputError, match="cannot be read: No such file"):
            packed.load(tmp_path / "none.sparsemble")
        assert not list(tmp_path.iterdir())
