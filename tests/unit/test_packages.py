"""Networks of packages: those of transformers with their processor inside, and what is said where a package fails."""

import importlib
import logging
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.data.dataset import TensorSplit
from sparsemble.evaluation.loaded_model import LoadedModel, load_target
from sparsemble.evaluation.run_attacks import weights_hash
from sparsemble.models import architectures
from sparsemble.models.graph import Graph
from sparsemble.models.huggingface import load_classifier

NAMES = ("cat", "dog", "bird", "fish")


class TestPackagesThatAreNotThere:
    @pytest.mark.parametrize("package", ["timm", "torchvision", "robustbench"])
    def test_it_is_named(self, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=f"needs the package {package}, which does not import here"):
            architectures.build({"name": package, "model": "resnet18"}).build(3, 10)

    @pytest.mark.parametrize("package", ["timm", "torchvision", "robustbench"])
    def test_what_it_refuses_is_a_sentence(self, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_names: str, **_settings: Any) -> None:
            raise RuntimeError("Unknown model (resnet81)")

        functions = {"create_model": refuse, "load_model": refuse, "models": types.SimpleNamespace(get_model=refuse)}
        monkeypatch.setitem(sys.modules, package, types.SimpleNamespace(**functions))
        with pytest.raises(InputError, match=rf"{package} did not make the network \(RuntimeError: Unknown model"):
            architectures.build({"name": package, "model": "resnet81"}).build(3, 10)

    def test_what_it_makes_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def create(name: str, *, pretrained: bool, in_chans: int, num_classes: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 4, num_classes, bias=pretrained))

        monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create))
        network = architectures.build({"name": "timm", "model": "any"}).build(3, 10)
        assert network(torch.zeros(2, 3, 2, 2)).shape == (2, 10)

    def test_without_transformers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(InputError, match=r"pip install 'sparsemble\[transformers\]'"):
            load_target("hf:any/model")


transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")


def made(name: str) -> Any:
    """Return a class of transformers, without its notice of what is not installed."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return getattr(transformers, name)
    finally:
        logger.setLevel(level)


def resnet(**settings: Any) -> Any:
    labels = dict(enumerate(NAMES))
    size = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    torch.manual_seed(0)
    return made("ResNetForImageClassification")(made("ResNetConfig")(**size, id2label=labels, **settings)).eval()


PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "to a size": ("ViTImageProcessor", {"size": {"height": 24, "width": 24}}),
    "shorter edge and middle": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 28}, "crop_size": {"height": 24, "width": 24}},
    ),
    "a share of the middle": ("ConvNextImageProcessor", {"size": {"shortest_edge": 24}, "crop_pct": 0.8}),
    "twice divided": ("EfficientNetImageProcessor", {"size": {"height": 24, "width": 24}}),
    "to -1 and 1": (
        "EfficientNetImageProcessor",
        {"size": {"height": 24, "width": 24}, "rescale_factor": 1 / 127.5, "rescale_offset": True, "resample": 0},
    ),
    "one channel": (
        "ViTImageProcessor",
        {"size": {"height": 24, "width": 24}, "image_mean": [0.5], "image_std": [0.5]},
    ),
    "nothing but scale": ("ViTImageProcessor", {"do_resize": False, "do_normalize": False}),
}


def save(folder: Path, model: Any, processor: str = "to a size") -> Path:
    kind, settings = PROCESSORS[processor]
    model.save_pretrained(folder)
    made(kind)(**settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("processor", [name for name in PROCESSORS if name != "one channel"])
def test_what_the_processor_does_is_inside(processor: str, tmp_path: Path) -> None:
    original = resnet()
    classifier, names = load_classifier(str(save(tmp_path, original, processor)))
    assert names == NAMES
    assert not classifier.training
    # Middle greys: Pillow clips between its two passes.
    image = np.random.default_rng(1).integers(96, 160, (41, 33, 3), dtype=np.uint8)
    theirs = made("AutoImageProcessor").from_pretrained(tmp_path)
    pixels = theirs(images=[image], return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = original(pixel_values=pixels).logits
        torch.testing.assert_close(classifier(x), expected, rtol=0.02, atol=2e-3)
        batch = torch.rand(3, 3, 24, 24, generator=seeded(0))
        torch.testing.assert_close(classifier(batch)[1:2], classifier(batch[1:2]), rtol=1e-4, atol=1e-5)


def test_images_of_the_networks_size_are_not_cropped(tmp_path: Path) -> None:
    classifier, _ = load_classifier(str(save(tmp_path, resnet(), "shorter edge and middle")))
    x = torch.rand(2, 3, 24, 24, generator=seeded(0))
    preparation = classifier.preparation
    std, mean = (torch.tensor(values)[:, None, None] for values in (preparation.std, preparation.mean))
    torch.testing.assert_close(preparation(x) * std + mean, x)


def test_a_vision_transformer_is_a_target(tmp_path: Path) -> None:
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = made("ViTConfig")(**size, image_size=24, patch_size=8, num_labels=4)
    save(tmp_path, made("ViTForImageClassification")(config).eval())
    target = load_target(f"hf:{tmp_path}")
    split = TensorSplit(torch.rand(9, 3, 16, 16, generator=seeded(2)), torch.arange(9) % 4)
    probed = target.probed(split, 4)
    assert target.kind == "huggingface"
    assert "processor" in probed.notes[0]
    assert probed.model(split.images(torch.arange(3))).shape == (3, 4)
    with pytest.raises(InputError, match="4 outputs but the data set has 10 classes"):
        target.probed(split, 10)


def test_classes_in_another_order_are_not_mixed_up() -> None:
    target = LoadedModel(name="a", kind="huggingface", path="a", model=nn.Identity(), class_names=NAMES)
    target.check_class_names(NAMES)
    target.check_class_names(("airplane", "car", "dog", "bird"))
    with pytest.raises(InputError, match="--class-map 1,0,3,2"):
        target.check_class_names(("Dog", "Cat", "Fish", "Bird"))


def test_another_configuration_is_another_model(tmp_path: Path) -> None:
    hashes = set()
    for activation in ("relu", "gelu"):
        folder = save(tmp_path / activation, resnet(hidden_act=activation))
        hashes.add(weights_hash(load_classifier(str(folder))[0]))
    hashes.add(weights_hash(load_classifier(str(save(tmp_path / "third", resnet(), "nothing but scale")))[0]))
    assert len(hashes) == 3


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = save(tmp_path, resnet())
    torch.save(torch.load, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_classifier(str(folder))


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = save(tmp_path, resnet()) / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("classifier")}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="has no weights for classifier"):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere", "there is no such folder"), ("./nowhere", "no such folder"), ("/nowhere/at/all", "no such folder")],
)
def test_a_folder_that_is_not_there(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_target(f"hf:{name}")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_names: str, **_settings: Any) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(made("AutoModelForImageClassification"), "from_pretrained", unreachable)
    with pytest.raises(InputError, match=r"connect to the hub.*give a folder"):
        load_target("hf:owner/name")


def test_a_folder_without_a_processor(tmp_path: Path) -> None:
    save(tmp_path, resnet())
    next(tmp_path.glob("*processor*")).unlink()
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        load_classifier(str(tmp_path))


def test_a_processor_that_does_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, resnet())
    kind = type(made("AutoImageProcessor").from_pretrained(tmp_path))
    module = importlib.import_module(kind.__module__)
    monkeypatch.setattr(getattr(module, kind.__name__), "normalize", lambda _self, image, _mean, _std: image**2)
    with pytest.raises(InputError, match="does something else to images"):
        load_classifier(str(tmp_path))


def test_a_folder_of_transformers_is_told_from_a_run(tmp_path: Path) -> None:
    save(tmp_path, resnet())
    with pytest.raises(InputError, match=f"name it as hf:{tmp_path}"):
        load_target(str(tmp_path))


def test_as_a_parent_what_decides_by_its_input_is_refused(tmp_path: Path) -> None:
    network = architectures.build({"name": "huggingface", "model": str(save(tmp_path, resnet()))}).build(3, 4)
    with pytest.raises(InputError, match="decides by its input what it computes"):
        Graph(network, (3, 24, 24))
