"""`sparsemble evaluate` and `sparsemble compare` from the command line."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sparsemble.core.results import EvaluationResult
from tests.end_to_end.conftest import sparsemble

FEW = ("--attacks", '[{name = "pgd", steps = 4}, {name = "fgsm"}]', "--images", 30, "--seed", 2)
TINY = "{name = 'tiny', width = 4}"


def evaluate(*words: object) -> dict:
    result = sparsemble("evaluate", *words, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def artifact(run: Path, stage: str) -> Path:
    return sorted(run.glob(f"{stage}-*"))[0]


@pytest.fixture(scope="module")
def dense(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("dense") / "out"
    return folder, evaluate(finished, "--row", "dense", "--out", folder, *FEW)


@pytest.fixture(scope="module")
def make_ensemble(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("ensemble") / "out"
    return folder, evaluate(finished, "--out", folder, *FEW)


def test_result_is_complete_and_consistent(dense: tuple[Path, dict]) -> None:
    folder, result = dense
    assert result == json.loads((folder / "evaluation.json").read_text("utf-8"))
    assert [check["number"] for check in result["checks"]] == list(range(1, 51))
    outcomes = [attack["correct"] for attack in result["attacks"]]
    union = [int(all(column)) for column in zip(result["clean_correct"], *outcomes, strict=True)]
    assert result["worst_case"]["correct"] == union
    assert result["worst_case"]["accuracy"] == sum(union) / 30
    assert result["threat"]["eps"] == 0.1  # the recipe's, not the usual 8/255
    assert len(result["data"]["indices"]) == 30
    assert not any("mode" in attack for attack in result["attacks"])  # AutoAttack was not run
    assert json.loads(EvaluationResult.load(folder / "evaluation.json").to_json()) == result
    for name in ("index.html", "evaluation.md"):
        assert (folder / name).stat().st_size > 1000


def test_an_ensemble_is_attacked_through_everything(make_ensemble: tuple[Path, dict]) -> None:
    _, result = make_ensemble
    labels = " ".join(attack["label"] for attack in result["attacks"])
    for word in ("whole", "prefix", "member", "expectation", "joint", "slowdown", "sequential", "reweighted"):
        assert word in labels
    assert result["model"]["members"] == 2
    assert result["members"]["transfer"][0][1] >= 0
    assert result["members_run"]["slowdown"] >= result["members_run"]["clean"]


def test_images_of_another_model_are_tried_too(finished: Path, tmp_path: Path) -> None:
    words = ("--row", "dense", "--transfer", artifact(finished, "prune"), "--out", tmp_path / "out")
    result = evaluate(finished, *words, "--attacks", "fgsm", "--images", 20)
    source = result["attacks"][-1]["settings"]["source"]
    assert result["attacks"][-1]["label"] == "transfer"
    assert source != result["model"]["sha256"]
    assert len(source) == 64


def test_asked_again_it_does_no_attack(finished: Path, make_ensemble: tuple[Path, dict]) -> None:
    folder, result = make_ensemble
    shards = {path: path.stat().st_mtime_ns for path in folder.rglob("outcomes/*/*.safetensors")}
    assert shards
    again = evaluate(finished, "--out", folder, *FEW)
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    for name in ("attacks", "worst_case", "passes", "security_curve"):
        assert again.get(name) == result.get(name)


def test_artifact_weights_and_code_are_the_same_model(finished: Path, dense: tuple[Path, dict], tmp_path: Path) -> None:
    train = artifact(finished, "train")
    data = ("--data", "digits", "--eps", "0.1")
    by_artifact = evaluate(train, "--out", tmp_path / "a", *FEW)
    by_weights = evaluate(train / "model.safetensors", "--model", TINY, *data, "--out", tmp_path / "b", *FEW)
    code = tmp_path / "mine.py"
    code.write_text(
        "from pathlib import Path\nimport torch\n"
        "from sparsemble.models.model_io import load_model\n"
        f"def make():\n    return load_model(Path({str(train)!r}), torch.device('cpu'))\n",
        "utf-8",
    )
    by_code = evaluate(f"{code}:make", *data, "--out", tmp_path / "c", *FEW)
    for result in (by_artifact, by_weights, by_code):
        assert result["model"]["sha256"] == dense[1]["model"]["sha256"]
        assert result["worst_case"] == dense[1]["worst_case"]
    assert [r["model"]["kind"] for r in (by_artifact, by_weights, by_code)] == ["artifact", "weights", "code"]


def test_corruptions_stand_in_the_same_result(finished: Path, tmp_path: Path) -> None:
    words = (finished, "--row", "dense", "--out", tmp_path / "out", "--attacks", "fgsm", "--images", 20)
    without = evaluate(*words)
    result = evaluate(*words, "--corruptions")
    corruptions = result["corruptions"]
    assert len(corruptions["corruptions"]) == 15
    assert corruptions["source"] == "generated"
    assert corruptions["images"] == 20
    assert {check["number"]: check["status"] for check in result["checks"]}[49] == "passed"
    assert {check["number"]: check["status"] for check in without["checks"]}[49] == "skipped"
    assert result["attacks"] == without["attacks"]  # resumed
    assert "## Common corruptions" in (tmp_path / "out/evaluation.md").read_text("utf-8")
    refused = sparsemble("evaluate", *words, "--corruptions", tmp_path)
    assert refused.returncode == 2
    assert "lacks gaussian_noise.npy" in refused.stderr


def test_compare_prints_and_draws(dense: tuple[Path, dict], make_ensemble: tuple[Path, dict], tmp_path: Path) -> None:
    result = sparsemble("compare", dense[0], make_ensemble[0] / "evaluation.json", "--out", tmp_path / "page")
    assert result.returncode == 0, result.stderr
    assert "dense" in result.stdout
    assert (tmp_path / "page" / "index.html").is_file()


def test_compare_refuses_what_cannot_share_a_table(dense: tuple[Path, dict], tmp_path: Path) -> None:
    other = json.loads((dense[0] / "evaluation.json").read_text("utf-8"))
    other["threat"] |= {"eps": 0.2, "eps_text": "0.2"}
    (tmp_path / "other.json").write_text(json.dumps(other), "utf-8")
    result = sparsemble("compare", dense[0], tmp_path / "other.json")
    assert result.returncode == 2
    assert "0.2" in result.stderr
    assert sparsemble("compare", dense[0]).returncode == 2


def test_one_folder_never_mixes_two_models(finished: Path, dense: tuple[Path, dict]) -> None:
    result = sparsemble("evaluate", finished, "--row", "harp", "--out", dense[0], *FEW)
    assert result.returncode == 2
    assert "another model" in result.stderr


def test_bad_targets_are_sentences(finished: Path, tmp_path: Path, in_process) -> None:
    train = artifact(finished, "train")
    (tmp_path / "bad.py").write_text("def number():\n    return 3\ndef fails():\n    return 1 / 0\n", "utf-8")
    tensors = load_file(train / "model.safetensors")
    first = next(name for name in tensors if name.endswith("weight"))
    save_file({k: v for k, v in tensors.items() if k != first}, tmp_path / "short.safetensors")
    (tmp_path / "empty").mkdir()
    edited = tmp_path / train.name
    shutil.copytree(train, edited)
    (edited / "model.safetensors").write_bytes(b"x")
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "nowhere"], "does not exist"),
        ([tmp_path / "empty"], "neither a run"),
        ([edited], "was changed after it was written"),
        ([finished, "--row", "ensemble"], "not in the result table"),
        ([artifact(finished, "select")], "holds no model"),
        ([f"{tmp_path / 'bad.py'}:number", "--data", "digits"], "must return a torch.nn.Module, got int"),
        ([f"{tmp_path / 'bad.py'}:fails", "--data", "digits"], "ZeroDivisionError"),
        ([f"{tmp_path / 'bad.py'}:numbr", "--data", "digits"], 'did you mean "number"'),
        ([tmp_path / "bad.py"], "name of a function"),
        ([train / "model.safetensors", "--data", "digits"], "name the architecture with --model"),
        ([train / "model.safetensors", "--model", TINY], "name the images with --data"),
        ([train / "model.safetensors", "--model", "tiny", "--data", "digits"], "do architecture, width"),
        ([tmp_path / "short.safetensors", "--model", TINY, "--data", "digits"], "another architecture"),
        ([finished, "--attacks", "pdg"], 'did you mean "pgd"'),
        ([finished, "--attacks", "carlini_wagner"], 'works in l2 only, not in linf; use "cw_linf" for linf'),
        ([finished, "--attacks", "[{name = 'pgd', step = 3}]"], 'did you mean "steps"'),
        ([finished, "--eps", "8"], '"8/255"'),
        ([finished, "--eps", "eight"], "not a number"),
        ([finished, "--norm", "l3"], "norm = 'l3' must be one of 'linf', 'l2'"),
        ([finished, "--images", 501, "--attacks", "fgsm"], "501 is more than the 500"),
        ([finished, "--images", -1], "images = -1"),
        ([finished, "--search", "int8"], "must be one of 'float32', 'bfloat16'"),
        ([finished, "--data", "digit"], 'did you mean "digits"'),
    ]
    for words, expected in cases:
        status, errors = in_process("evaluate", *words, "--out", tmp_path / "out")
        assert status == 2, (words, errors)
        assert expected in errors, (words, errors)
        assert len(errors.strip().splitlines()) == 1


def test_a_model_of_other_classes_is_refused(tmp_path: Path, in_process) -> None:
    (tmp_path / "three.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n", "utf-8"
    )
    status, errors = in_process(
        "evaluate", f"{tmp_path / 'three.py'}:make", "--data", "digits", "--attacks", "fgsm", "--out", tmp_path / "out"
    )
    assert status == 2
    assert "3 outputs but the data set has 10 classes" in errors
