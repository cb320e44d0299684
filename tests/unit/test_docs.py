"""What the documents say is run or looked up."""

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
