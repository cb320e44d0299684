"""`--parent TARGET`: the settings by which a trained classifier takes the place of a recipe's dense parent."""

from json import dumps
from pathlib import Path
from typing import Any

from sparsemble.core.artifacts import META, Artifact, read_json
from sparsemble.core.errors import InputError
from sparsemble.core.source_file import split_reference
from sparsemble.evaluation.loaded_model import MODELS
from sparsemble.evaluation.run_models import INDEX, RunIndex
from sparsemble.models.huggingface import PREFIX
from sparsemble.models.model_io import SPEC
from sparsemble.runtime.format import packed


def parent_settings(target: str) -> list[str]:
    """Return the settings, as after --set, for a classifier named as in `sparsemble evaluate`.

    Args:
        target: an .onnx file, `hf:NAME`, `file.py:factory`, a file of weights for the recipe's own `model`, an artifact
            of one model, or a run, whose dense parent is taken.

    Raises:
        InputError: nothing there, or it is more than one network.
    """
    file = Path(target)
    if target.startswith(PREFIX):
        return _network(name="huggingface", model=target.removeprefix(PREFIX))
    if split_reference(target)[0]:
        return _network(name="code", factory=target, normalises=True)
    if (file / INDEX).is_file():
        return _stored(RunIndex.load(file).artifacts(file, "dense")["dense"])
    if (file / META).is_file():
        return _stored(Artifact(file))
    if not file.is_file():
        raise InputError(
            f"--parent {target} does not exist; give an .onnx file, hf:NAME, file.py:factory, a file of weights, a run "
            "or an artifact of one model"
        )
    if file.suffix == packed.SUFFIX:
        raise InputError(f"--parent {target} is a packed ensemble of rounded networks; give the run that it is from")
    if file.suffix == ".onnx":
        return _network(name="onnx", file=target)
    return [f"parent={{weights={dumps(target)}}}"]


def _network(**settings: Any) -> list[str]:
    return [f"model={_table(settings)}", "parent={}"]


def _stored(artifact: Artifact) -> list[str]:
    if artifact.meta["stage"] not in MODELS:
        raise InputError(f"--parent {artifact.path} holds no single network; give an artifact of {', '.join(MODELS)}")
    architecture = read_json(artifact.path / SPEC)["architecture"]
    weights = str(artifact.path / "model.safetensors")
    return [f"model={_table(architecture)}", f"parent={{weights={dumps(weights)}}}"]


def _table(settings: dict[str, Any]) -> str:
    """Return an inline table of TOML."""
    return "{" + ", ".join(f"{key} = {dumps(value)}" for key, value in settings.items() if value is not None) + "}"
