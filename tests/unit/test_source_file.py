"""Components in files of the user: how they are found, what is refused, and what a hash covers."""

import json
from pathlib import Path

import pytest
import torch

from sparsemble.attacks.attack import attacks
from sparsemble.core.config import from_dict
from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict
from sparsemble.core.source_file import files_beside
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.pipeline.recipe import Recipe, load_recipe
from sparsemble.pipeline.validate_recipe import validate_recipe
from tests.processes import run_python
from tests.unit.test_docs import ROOT, blocks

SMOKE = ROOT / "tests/end_to_end/smoke.toml"
SINGLE_STEP, RESCALED = blocks(ROOT / "docs/adding.md", "python")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The attack of docs/adding.md in a file of its own."""
    path = tmp_path / "single_step.py"
    path.write_text(SINGLE_STEP, "utf-8")
    return path


class TestBuild:
    def test_an_attack_from_a_file_takes_one_step(self, file: Path) -> None:
        attack = attacks.build({"name": f"{file}:SingleStep", "step_size": 0.5})
        x, y = torch.full((4, 1, 2, 2), 0.5), torch.tensor([0, 1, 0, 1])
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        x_adv = attack(model, x, y, ThreatModel(eps=0.1), rng=seeded(0))
        assert torch.allclose((x_adv - x).abs(), torch.tensor(0.05))
        assert (attack.name, attack.label) == ("SingleStep", "single_step")

    def test_without_a_label_of_its_own_it_has_that_of_its_class(self, file: Path) -> None:
        file.write_text(SINGLE_STEP.replace('label: str = "single_step"', "other: int = 1"), "utf-8")
        assert attacks.build(f"{file}:SingleStep").label == "SingleStep"

    def test_equal_settings_give_equal_components(self, file: Path) -> None:
        assert attacks.build(f"{file}:SingleStep") == attacks.build({"name": f"{file}:SingleStep", "step_size": 1})

    def test_a_relative_path_is_beside_the_recipe_or_in_the_current_directory(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = tmp_path / "other"
        other.mkdir()
        monkeypatch.chdir(other)
        with pytest.raises(InputError, match=r"^attack: .*other/single_step\.py does not exist$"):
            attacks.build("single_step.py:SingleStep")
        with files_beside(tmp_path):
            beside = attacks.build("single_step.py:SingleStep")
        monkeypatch.chdir(tmp_path)
        with files_beside(other):
            assert attacks.build("single_step.py:SingleStep") == beside

    def test_in_a_recipe_it_reads_back_to_the_same(self, file: Path) -> None:
        recipe_file = file.with_name("mine.toml")
        recipe_file.write_text(SMOKE.read_text("utf-8"), "utf-8")
        setting = 'evaluate.attacks=["pgd", {name = "single_step.py:SingleStep", step_size = 0.5}]'
        _, recipe = load_recipe(str(recipe_file), (setting, "held_out_attack=single_step.py:SingleStep"))
        stored = to_dict(recipe)
        assert stored["evaluate"]["attacks"][1]["name"] == f"{file}:SingleStep"
        read_back = from_dict(Recipe, json.loads(json.dumps(stored)))
        assert read_back == recipe
        assert to_dict(read_back) == stored


class TestHash:
    def test_covers_the_content_and_not_the_path(self, file: Path) -> None:
        before = to_dict(attacks.build(f"{file}:SingleStep"), versions=True)
        moved = file.parent / "elsewhere" / file.name
        moved.parent.mkdir()
        moved.write_text(SINGLE_STEP, "utf-8")
        assert to_dict(attacks.build(f"{moved}:SingleStep"), versions=True) == before
        moved.write_text(SINGLE_STEP + "\n# changed\n", "utf-8")
        assert to_dict(attacks.build(f"{moved}:SingleStep"), versions=True) != before

    def test_a_file_that_was_changed_since_is_refused(self, file: Path) -> None:
        table = to_dict(attacks.build(f"{file}:SingleStep"))
        assert attacks.build(table) == attacks.build(f"{file}:SingleStep")
        file.write_text(SINGLE_STEP + "\n# changed\n", "utf-8")
        with pytest.raises(InputError, match=r"^attack: .*single_step\.py was changed since this was made with it"):
            attacks.build(table)


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "name", "message"),
        [
            (SINGLE_STEP, "SingelStep", r'single_step.py has no class SingelStep; did you mean "SingleStep"\?'),
            ("x = 1", "Mine", r"single_step.py has no class Mine"),
            ("1 / 0", "Mine", r"single_step.py failed when it was imported: ZeroDivisionError: division by zero"),
            ("def", "Mine", r"failed when it was imported: SyntaxError: invalid syntax \(single_step.py, line 1\)"),
            ("import sys; sys.exit(3)", "Mine", r"failed when it was imported: SystemExit: 3"),
            (
                SINGLE_STEP.replace("def perturb", "def disturb"),
                "SingleStep",
                r"single_step.py:SingleStep lacks the method perturb, which every attack must define",
            ),
            (
                SINGLE_STEP.replace("(Attack)", ""),
                "SingleStep",
                r"SingleStep must be a subclass of sparsemble.attacks.attack.Attack and define perturb",
            ),
            (
                SINGLE_STEP.replace("@dataclass(frozen=True, kw_only=True)\n", ""),
                "SingleStep",
                r"SingleStep must be a frozen dataclass; put @dataclass\(frozen=True, kw_only=True\) above it",
            ),
            (
                SINGLE_STEP.replace("step_size", "version"),
                "SingleStep",
                r"SingleStep has a setting called version, which is reserved; rename it",
            ),
        ],
    )
    def test_with_one_sentence(self, file: Path, text: str, name: str, message: str) -> None:
        file.write_text(text, "utf-8")
        with pytest.raises(InputError, match=rf"^here\[0\]: .*{message}") as refused:
            attacks.build(f"{file}:{name}", "here[0]")
        assert "\n" not in str(refused.value)

    def test_a_setting_that_it_does_not_have(self, file: Path) -> None:
        with pytest.raises(InputError, match=r'^here\.step_sise is not a known setting; did you mean "step_size"\?$'):
            attacks.build({"name": f"{file}:SingleStep", "step_sise": 1}, "here")


def test_a_combiner_that_the_runtime_does_not_have_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from sparsemble.core.interfaces import Combiner\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class First(Combiner):\n"
        "    def __call__(self, member_logits): return member_logits[0]\n",
        "utf-8",
    )
    _, recipe = load_recipe(str(SMOKE), (f"ensemble.combiner={tmp_path / 'mine.py'}:First",))
    validate_recipe(recipe, deploys=False)
    with pytest.raises(InputError, match=r"^ensemble.combiner: the runtime does not have .*mine.py:First; change it"):
        validate_recipe(recipe)


def test_the_pruning_method_of_the_page_keeps_the_contract(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rescaled_one_shot.py").write_text(RESCALED, "utf-8")
    script = f"""
import copy, sys
sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
import mine.rescaled_one_shot
from tests.contracts.test_pruning_methods import GRANULARITIES, check, context, magnitudes, make, target
from sparsemble.pruning import pruning_methods
for granularity, sparsity in GRANULARITIES.items():
    model = make()
    before, goal = copy.deepcopy(model.state_dict()), target(model, sparsity, granularity=granularity)
    check(model, before, goal, pruning_methods.build("rescaled_one_shot")(model, magnitudes(model), goal, context()))
"""
    result = run_python(script)
    assert result.returncode == 0, result.stderr
