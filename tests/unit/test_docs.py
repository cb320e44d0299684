"""What the documents say is run or looked up."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACE = re.compile(r"\[([\w/]+\.py):(\d+)\]\(\.\./src/sparsemble/[\w/.]+#L\2\) `(\w+)`")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)


def place(match: re.Match[str]) -> str:
    """Write a place of the method page with the line where its symbol is defined now."""
    path, _, symbol = match.groups()
    lines = (ROOT / "src/sparsemble" / path).read_text("utf-8").splitlines()
    found = [i for i, line in enumerate(lines, 1) if re.match(rf"\s*(def|class) {symbol}\b", line)]
    assert found, f"docs/method.md names {symbol}, which is not in {path}"
    return f"[{path}:{found[0]}](../src/sparsemble/{path}#L{found[0]}) `{symbol}`"


def test_every_place_in_the_method_page_is_right() -> None:
    text = (ROOT / "docs/method.md").read_text("utf-8")
    assert len(PLACE.findall(text)) > 20
    assert PLACE.sub(place, text) == text, "line numbers moved; `python tests/unit/test_docs.py` writes the new ones"


def test_the_worked_example_of_adding_an_attack_works(tmp_path: Path) -> None:
    script = """
import torch, mine.single_step
from sparsemble.attacks.attack import attacks
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
attack = attacks.build({"name": "single_step"})
x, y = torch.full((4, 1, 2, 2), 0.5), torch.tensor([0, 1, 0, 1])
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
x_adv = attack(model, x, y, ThreatModel(eps=0.1), rng=seeded(0))
assert torch.allclose((x_adv - x).abs(), torch.tensor(0.1)), x_adv
"""
    run_with_example(0, "single_step", script, tmp_path)


def test_the_worked_example_of_adding_a_method_keeps_the_contract(tmp_path: Path) -> None:
    script = """
import copy, mine.rescaled_one_shot
from tests.contracts.test_pruning_methods import GRANULARITIES, check, context, magnitudes, make, target
from sparsemble.pruning import pruning_methods
for granularity, sparsity in GRANULARITIES.items():
    model = make()
    before, asked = copy.deepcopy(model.state_dict()), target(model, sparsity, granularity=granularity)
    check(model, before, asked, pruning_methods.build("rescaled_one_shot")(model, magnitudes(model), asked, context()))
"""
    run_with_example(1, "rescaled_one_shot", script, tmp_path)


def run_with_example(number: int, name: str, script: str, folder: Path) -> None:
    """Run a script that can import one of the page's examples."""
    package = folder / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("", "utf-8")
    (package / f"{name}.py").write_text(blocks("docs/adding.md", "python")[number], "utf-8")
    paths = os.pathsep.join([str(folder), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


def test_readme_has_the_two_commands_and_a_map() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    run, test = (block.strip() for block in blocks("README.md", "sh")[:2])
    assert run == "pip install -c constraints.txt -e '.[train]' && sparsemble run digits"
    assert test == "pip install -c constraints.txt -e '.[test]' && pytest"
    assert text.index("## Run it") < text.index("## Test it")
    for room in sorted(path.parent.name for path in (ROOT / "src/sparsemble").glob("*/__init__.py")):
        assert re.search(rf"\b{room}\b", text) or room == "recipes", f"README's map lacks the room {room}"


def test_readme_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("README.md", "python")
    assert len(code.strip().splitlines()) == 5
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"\d", result.stdout)


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / "docs" / target).exists(), f"docs/{page} links to {target}"


if __name__ == "__main__":
    method = ROOT / "docs/method.md"
    method.write_text(PLACE.sub(place, method.read_text("utf-8")), "utf-8")
