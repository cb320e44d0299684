"""Accuracy under corruptions: generated or from arrays, resumed, checked, and shown."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from rich.console import Console
from torch import nn

from sparsemble.attacks.black_box.noise import Noise
from sparsemble.cli import app
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.results import CorruptionRecord, EvaluationResult
from sparsemble.core.results.corruptions import CORRUPTIONS, FAMILIES
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data import data_sources
from sparsemble.data.dataset import TensorSplit
from sparsemble.evaluation.check_suite import reporting
from sparsemble.evaluation.corrupted_images import (
    CorruptedFiles,
    GeneratedCorruptions,
    StoredCorruptions,
    open_corruptions,
)
from sparsemble.evaluation.corruption_accuracy import corruption_accuracy, plan_corruptions
from sparsemble.evaluation.corruptions import corrupt
from sparsemble.evaluation.job import EvaluationJob
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.progress import Progress
from sparsemble.report import evaluation_table, write_evaluation
from tests.example_results import example_corruptions, example_evaluation
from tests.unit.sound_ensemble import changed, ensemble_result, expect

SHAPE = (1, 8, 8)


class Bright(nn.Module):
    """Class 1 where the image is brighter than grey on average, else class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = self.scale * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-side, side], 1)


def images(count: int = 12) -> TensorSplit:
    x = (255 * torch.rand(count, *SHAPE, generator=seeded(3))).round() / 255
    return TensorSplit(x, Bright()(x).argmax(1))


def job_of(split: TensorSplit, **more: Any) -> EvaluationJob:
    given = {"threat": ThreatModel(eps=0.02), "attacks": (Noise(draws=1),), "shard": 5}
    return EvaluationJob(model=Bright(), split=split, classes=2, **{**given, **more})


def measured(
    job: EvaluationJob, store: OutcomeStore | None = None, source: Any = None, positions: Any = None
) -> CorruptionRecord:
    progress = Progress(job.model, lambda fraction, text: None)
    plan_corruptions(job, progress)
    source = source or GeneratedCorruptions(0)
    right = torch.ones(len(job.split), dtype=torch.bool)
    return corruption_accuracy(
        job, source, positions or range(len(job.split)), right, store or OutcomeStore(), progress
    )


def test_accuracies_and_means_are_those_of_the_corrupted_images() -> None:
    split = images()
    record = measured(job_of(split))
    x, y = split.tensors()
    by_name = {row.name: row for row in record.corruptions}
    for name in CORRUPTIONS:
        pictures = (corrupt(name, severity, x, seed=0, positions=range(12)) for severity in range(1, 6))
        expected = [float((Bright()(picture).argmax(1) == y).float().mean()) for picture in pictures]
        assert by_name[name].accuracy == pytest.approx(expected)
        assert by_name[name].mean == pytest.approx(np.mean(expected))
    assert record.mean == pytest.approx(np.mean([row.accuracy for row in record.corruptions]))
    severe = [by_name[name].accuracy[4] for name in FAMILIES["weather"]]
    assert record.by_severity(FAMILIES["weather"])[4] == pytest.approx(np.mean(severe))
    assert (record.source, record.parameters, record.seed, record.images) == ("generated", "CIFAR-10-C", 0, 12)


def test_a_part_of_the_images_meets_the_same_corruptions() -> None:
    split = images()
    part = torch.tensor([1, 4, 7])
    store = OutcomeStore()
    measured(job_of(split, shard=12), store)
    some = OutcomeStore()
    measured(job_of(split.subset(part), shard=3), some, positions=part.tolist())

    def predictions(of: OutcomeStore) -> dict[str, torch.Tensor]:
        return {label: outcome.prediction for (label, _, _), (outcome, _) in of.memory.items()}

    whole = predictions(store)
    for label, prediction in predictions(some).items():
        assert torch.equal(prediction, whole[label][part])


def test_finished_shards_are_read_and_other_seeds_computed(tmp_path: Path) -> None:
    job, store = job_of(images(6), shard=6), OutcomeStore(tmp_path)
    first = measured(job, store)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 75
    with count_passes(job.model) as passes:
        assert measured(job, store) == first
    assert passes.forward == 0
    next(tmp_path.glob("fog-2/00000.safetensors")).unlink()
    with count_passes(job.model) as passes:
        assert measured(job, store) == first
    assert passes.forward == 6
    with count_passes(job.model) as passes:
        measured(job, store, GeneratedCorruptions(1))
    assert passes.forward == 75 * 6


def arrays(folder: Path, split: TensorSplit, change: Callable[[np.ndarray], np.ndarray] = lambda a: a) -> Path:
    """Write arrays as CIFAR-10-C has them; `change` is applied to those of fog."""
    x, y = split.tensors()
    folder.mkdir(exist_ok=True)
    for name in CORRUPTIONS:
        pictures = [corrupt(name, severity, x, seed=0, positions=range(len(x))) for severity in range(1, 6)]
        pixels = (255 * torch.cat(pictures)).round().byte().permute(0, 2, 3, 1).numpy()
        np.save(folder / f"{name}.npy", change(pixels) if name == "fog" else pixels)
    np.save(folder / "labels.npy", np.tile(y.numpy(), 5).astype(np.uint8))
    return folder


def test_published_arrays_give_what_generated_images_give(tmp_path: Path) -> None:
    split = images()
    folder = arrays(tmp_path / "arrays", split, lambda pixels: pixels[..., 0])  # grey ones may lack the last axis
    generated = measured(job_of(split))
    for part in (torch.arange(12), torch.tensor([2, 3, 9])):
        source = open_corruptions(folder, split.subset(part), part.tolist(), 0)
        assert isinstance(source, StoredCorruptions)
        stored = measured(job_of(split.subset(part)), None, source, part.tolist())
        assert (stored.source, stored.parameters, stored.seed) == (str(folder), None, None)
        assert len(stored.sha256 or "") == 64
        if len(part) == 12:
            assert stored.corruptions == generated.corruptions


@pytest.mark.parametrize("parts", [True, False])
def test_files_give_what_arrays_give(parts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, _ = images(12 if parts else 24).tensors()
    for i, image in enumerate(clean):
        folders = ("train", "test") if parts else ("",)
        for k, part in enumerate(folders):
            path = tmp_path / "photos" / part / "ab"[i % 2] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * image[0] + 7 * k).clamp(0, 255).round().byte().numpy()).save(path)
    settings = {"size": 8, "grey": True, "held_out": 0.4, "near_duplicates": False}
    source = data_sources.build({"name": "image_folder", "root": str(tmp_path / "photos"), **settings})
    split = source.load().test
    assert len(split.names) == len(split) == (12 if parts else 5)
    x, _ = split.tensors()
    folder = tmp_path / "photos-C"
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            changed_images = corrupt(name, severity, x, seed=0, positions=range(len(x)))
            for image, file in zip(changed_images, split.names, strict=True):
                path = folder / name / str(severity) / file.removeprefix("test/")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((255 * image[0]).round().byte().numpy()).save(path)
    generated = measured(job_of(split))
    opened = open_corruptions(folder, split, range(len(split)), 0)
    assert isinstance(opened, CorruptedFiles)
    stored = measured(job_of(split), None, opened)
    assert stored.corruptions == generated.corruptions
    assert stored.source == str(folder)
    some = split.subset(torch.tensor([1, 3]))
    assert torch.equal(
        open_corruptions(folder, some, [1, 3], 0).images("fog", 2, x[[3, 1]], [3, 1]),
        opened.images("fog", 2, x, range(len(x)))[[3, 1]],
    )
    monkeypatch.setattr("sparsemble.data.image_folder.IN_MEMORY", 0)
    assert list(source.load().test.names) == list(split.names)
    path = folder / "snow" / "3" / split.names[2].removeprefix("test/")
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"cannot be read as an image: its format is not known, .*; repair it"):
        opened.images("snow", 3, x[[2]], [2])
    path.unlink()
    with pytest.raises(InputError, match=r"snow/3/.*png is missing; each test image needs a file of its name in every"):
        open_corruptions(folder, split, range(len(split)), 0)
    with pytest.raises(InputError, match=r"photos-C holds files, but the images that are evaluated are arrays"):
        open_corruptions(folder, images(), range(12), 0)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: (f / "fog.npy").unlink(), r"lacks fog\.npy"),
        (lambda f: (f / "labels.npy").unlink(), r"lacks labels\.npy"),
        (lambda f: (f / "fog.npy").write_bytes(b"no array"), r"fog\.npy cannot be read as an array"),
        (lambda f: np.save(f / "fog.npy", np.array([{}], dtype=object)), r"fog\.npy cannot be read as an array"),
        (
            lambda f: np.save(f / "fog.npy", np.zeros((60, 8, 8, 3), np.uint8)),
            r"uint8 \(60, 8, 8, 1\).*\(60, 8, 8, 3\)",
        ),
        (lambda f: np.save(f / "fog.npy", np.zeros((60, 8, 8, 1))), r"must be uint8 .*got float64"),
        (
            lambda f: np.save(f / "labels.npy", np.zeros(7, int)),
            r"labels\.npy must be whole numbers, one for each of 12",
        ),
        (
            lambda f: np.save(f / "labels.npy", 1 - np.load(f / "labels.npy")),
            r"other images, or in another order: image 0 has class",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(damage: Callable[[Path], Any], text: str, tmp_path: Path) -> None:
    split = images()
    folder = arrays(tmp_path / "arrays", split)
    damage(folder)
    with pytest.raises(InputError, match=text):
        open_corruptions(folder, split, range(12), 0)


def test_other_folders_and_sizes_are_refused(tmp_path: Path) -> None:
    split = images()
    with pytest.raises(InputError, match="nowhere is no folder of corrupted images"):
        open_corruptions("nowhere", split, range(12), 0)
    folder = arrays(tmp_path / "arrays", split)
    with pytest.raises(InputError, match="is about 12 images, but the evaluation uses image 40"):
        open_corruptions(folder, split, [*range(11), 40], 0)
    tiny = TensorSplit(torch.rand(2, 1, 3, 3), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="3 x 3 pixels are too small"):
        open_corruptions(True, tiny, range(2), 0)


def test_a_corruption_inside_the_threat_model_that_succeeds_refutes_the_evaluation() -> None:
    x = torch.full((4, *SHAPE), 120 / 255)  # dark by a little: brightness at severity 1 is inside eps and flips it
    split = TensorSplit(x, torch.zeros(4, dtype=torch.long))
    record = measured(job_of(split, threat=ThreatModel(eps=0.06)))
    assert record.missed == 4
    assert record.inside >= 4
    result = changed(ensemble_result(), "corruptions", record)
    expect(reporting.wider_tests(result), 49, "failed", "4 images withstand every attack, but not a corruption inside")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--corruptions"], "generated"),
        (["--corruptions", "--images", "5"], "generated"),
        (["--corruptions", "my folder"], "my folder"),
        (["--corruptions=my folder"], "my folder"),
        ([], ""),
    ],
)
def test_the_option_may_stand_without_a_folder(words: list[str], value: str) -> None:
    command = typer.main.get_command(app).commands["evaluate"]  # type: ignore[attr-defined]
    with typer.Context(command) as context:
        options, _, _ = command.make_parser(context).parse_args(["mine.py:make", *words])
    assert (options["target"], options.get("corruptions") or "") == ("mine.py:make", value)


def test_check_49_passes_fails_or_is_skipped_by_the_evidence() -> None:
    record = example_corruptions(40)
    sound = changed(ensemble_result(), "corruptions", record)
    expect(reporting.wider_tests(sound), 49, "passed", f"mean accuracy {record.mean:.3f} over 15 corruptions")
    expect(reporting.wider_tests(changed(sound, "corruptions.mean", 0.1)), 49, "failed", "no better than chance")
    expect(reporting.wider_tests(ensemble_result()), 49, "skipped", "--corruptions")


def test_a_record_that_contradicts_itself_is_refused() -> None:
    record = example_corruptions()
    first, *others = record.corruptions
    with pytest.raises(InputError, match=r"mean of gaussian_noise = 0\.1 must be the mean of its 5 values"):
        replace(first, mean=0.1)
    with pytest.raises(InputError, match="has 4 entries"):
        replace(first, accuracy=(0.5,) * 4, mean=0.5)
    with pytest.raises(InputError, match=r"must be the 15 of ImageNet-C"):
        replace(record, corruptions=tuple(others))
    with pytest.raises(InputError, match=r"mean of the corruptions = 0\.1"):
        replace(record, mean=0.1)
    with pytest.raises(InputError, match=r"corruptions\.images = 7 must be data\.images = 200"):
        replace(example_evaluation(), corruptions=replace(record, images=7))


def test_results_keep_corruptions_and_older_files_are_read(tmp_path: Path) -> None:
    plain = example_evaluation()
    result = replace(plain, corruptions=example_corruptions())
    for name, one in (("with", result), ("without", plain)):
        one.save(tmp_path / name)
        assert EvaluationResult.load(tmp_path / name) == one
    assert "corruptions" not in json.loads((tmp_path / "without").read_text("utf-8"))
    assert result.to_robustbench()["corruptions_acc"] == f"{100 * example_corruptions().mean:.2f}"
    assert f"common corruptions: {100 * example_corruptions().mean:.1f} %" in str(result)


def test_page_markdown_and_terminal_show_the_table(tmp_path: Path) -> None:
    record = example_corruptions()
    result = replace(example_evaluation(), corruptions=record)
    write_evaluation(result, None, tmp_path)
    out = io.StringIO()
    Console(file=out, width=80).print(evaluation_table(result))
    page, markdown = ((tmp_path / name).read_text("utf-8") for name in ("index.html", "evaluation.md"))
    for text in (page, markdown, out.getvalue()):
        for row in record.corruptions:
            assert row.name.replace("_", " ") in text
        assert f"{100 * record.mean:.1f}" in text
        assert "CIFAR-10-C, seed 0" in " ".join(text.split())
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "Accuracy under common corruptions" in page
    assert (tmp_path / "figures/corruptions.svg").is_file()
    write_evaluation(example_evaluation(), None, tmp_path / "plain")
    assert "orruption" not in (tmp_path / "plain/evaluation.md").read_text("utf-8")
