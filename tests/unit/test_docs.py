"""Everything that the documents claim about the code is run or looked up."""

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from docs.results_page import PAGE, page

from sparsemble.attacks.attack import attacks
from sparsemble.attacks.ensemble.ensemble_attack import ensemble_attacks
from sparsemble.cli import app
from sparsemble.core.config import RENAMED, from_dict, override, parse_toml
from sparsemble.core.interfaces import stopping_rules
from sparsemble.data.dataset import data_sources
from sparsemble.pipeline.recipe import Recipe, load_recipe, shipped
from sparsemble.pruning import pruning_methods, pruning_scores
from sparsemble.training.loss import training_losses

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
BY_NAME = [pytest.param(path, id=path.name) for path in PAGES]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ENSEMBLE_LOSSES = {
    name for name, loss in training_losses.components.items() if loss.__module__.startswith("sparsemble.ensemble")
}
EQUATIONS = re.compile(r"(main paper|supplement), eqs?\. (\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*)")
FENCE = re.compile(r"(?:<!-- (not run): [^\n]+ -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(path: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page, without those that are marked as not run."""
    found = FENCE.findall(path.read_text("utf-8"))
    return [code for marked, language, code in found if language in languages and not marked]


def code_lines(path: Path) -> Iterator[str]:
    """Yield the lines of all blocks in which commands stand, long lines joined, and code within sentences."""
    for block in blocks(path, "", "sh"):
        yield from block.replace("\\\n", " ").splitlines()
    prose = FENCE.sub("", path.read_text("utf-8")).replace("\\\n", " ")
    yield from re.findall(r"^    (\S.*)$", prose, re.MULTILINE)
    yield from re.findall(r"`((?:sparsemble|python benchmarks/)[^`]+)`", prose)


def commands(path: Path, program: str) -> list[list[str]]:
    """Return the words of every call of a program on a page."""
    calls = []
    for line in code_lines(path):
        for call in re.split(r"&&|;|\bdo\b|->", line):
            if call.split()[:1] == [program]:
                synopsis = call.replace("[", "").replace("]", "") if " [--" in call else call
                calls.append(shlex.split(synopsis, comments=True)[1:])
    return calls


def equations(text: str) -> set[tuple[str, int]]:
    """Return the equations that a text names: (document, number)."""
    found = set()
    for document, ranges in EQUATIONS.findall(" ".join(text.split())):
        for part in ranges.split(", "):
            first, _, last = part.partition("-")
            found |= {(document, number) for number in range(int(first), int(last or first) + 1)}
    return found


def resolve(name: str) -> Any:
    """Return what a qualified name within the package stands for."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(["sparsemble", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            value = getattr(value, attribute)
        return value
    raise AssertionError(f"docs/method.md names {name}, which does not exist")


def method_rows() -> list[tuple[str, str, str]]:
    """Return equation, qualified name and path of every row of the method page."""
    text = (ROOT / "docs/method.md").read_text("utf-8")
    return re.findall(r"^\| ([^|]+) \|[^|]+\| \[`([\w.]+)`\]\(\.\./src/sparsemble/([\w/.]+)\) \|", text, re.MULTILINE)


def test_the_method_page_names_every_equation_that_is_implemented() -> None:
    rows = method_rows()
    assert len(rows) > 20
    named = set.union(*(equations(row[0]) for row in rows))
    assert named == {
        *(("main paper", number) for number in range(1, 23) if number not in (4, 5)),
        *(("supplement", number) for number in range(23, 36)),
    }


@pytest.mark.parametrize(("equation", "name", "path"), method_rows())
def test_an_equation_of_the_method_page_is_named_where_it_is_implemented(equation: str, name: str, path: str) -> None:
    value = resolve(name)
    assert Path(inspect.getsourcefile(inspect.unwrap(value)) or "") == ROOT / "src/sparsemble" / path
    missing = equations(equation) - equations(inspect.getdoc(value) or "")
    assert not missing, f"the docstring of {name} does not name {missing}"


def test_the_page_of_result_fields_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == page(), "`python docs/results_page.py` writes it anew"


def test_readme_has_the_two_commands_and_a_map() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    run, test = (block.strip() for block in blocks(readme, "sh")[:2])
    assert run == "pip install -c constraints.txt -e '.[train]' && sparsemble run digits"
    assert test == "pip install -c constraints.txt -e '.[test]' && pytest"
    assert text.index("## Run it") < text.index("## Test it")
    for room in sorted(path.parent.name for path in (ROOT / "src/sparsemble").glob("*/__init__.py")):
        assert re.search(rf"\b{room}\b", text) or room == "recipes", f"README's map lacks the room {room}"


@pytest.mark.parametrize("path", [path for path in BY_NAME if blocks(path.values[0], "python")])  # type: ignore[arg-type]
def test_python_examples_run(path: Path, tmp_path: Path) -> None:
    if path.name == "adding.md":
        pytest.skip("its files are tested in test_source_file.py")
    if path.name == "quick_tour.md":
        pytest.skip("it runs as a notebook in test_quick_tour.py")
    code = "\n".join(blocks(path, "python"))
    ast.parse(code)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture
def named_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that has the files of the examples."""
    for name in ("mynet.py", "mynet.safetensors"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("named_files")
@pytest.mark.parametrize("path", BY_NAME)
def test_commands_and_their_options_exist(path: Path) -> None:
    for words in commands(path, "sparsemble"):
        if words[0].startswith("-") or words[0] == "...":
            continue
        assert words[0] in COMMANDS, words
        command = COMMANDS[words[0]]
        with typer.Context(command) as context:
            options, arguments, _ = command.make_parser(context).parse_args(words[1:])
        recipe = next((a for a in arguments if a in (*shipped(), "RECIPE")), None)
        if recipe:
            load_recipe(recipe if recipe != "RECIPE" else "digits", tuple(options.get("settings") or ()))
        for argument in arguments:
            assert not argument.startswith("studies/") or (ROOT / argument).exists(), argument


@pytest.mark.parametrize("path", BY_NAME)
def test_benchmarks_and_their_options_exist(path: Path) -> None:
    for words in commands(path, "python"):
        if not words[0].startswith("benchmarks/"):
            continue
        source = (ROOT / words[0]).read_text("utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, (words[0], option)


@pytest.mark.usefixtures("named_files")
@pytest.mark.parametrize("path", BY_NAME)
def test_settings_exist(path: Path) -> None:
    digits = parse_toml(shipped()["digits"], "digits")
    for block in blocks(path, "toml"):
        for text in tables(block):
            table = parse_toml(text, path.name)
            if "axes" in table:
                values = [value for axis in table["axes"].values() for value in axis.values()]
                table = override(digits, [*table.get("set", []), *(change for value in values for change in value)])
            if "project" not in table:
                from_dict(Recipe, {**digits, **{key: merged(digits.get(key), value) for key, value in table.items()}})


def merged(before: Any, value: Any) -> Any:
    """Return a table that changes another one, unless it is a component of another name."""
    both = isinstance(before, dict) and isinstance(value, dict)
    return {**before, **value} if both and before.get("name") == value.get("name", before.get("name")) else value


def tables(block: str) -> list[str]:
    """Return a block, or its lines where they are alternatives."""
    try:
        tomllib.loads(block)
    except tomllib.TOMLDecodeError:
        return block.splitlines()
    return [block]


def test_the_changelog_names_everything_that_was_renamed() -> None:
    renames = (ROOT / "CHANGELOG.md").read_text("utf-8").split("### Renamed\n")[1]
    for old, new in RENAMED.items():
        assert all(re.search(rf"\b{name}\b", renames, re.IGNORECASE) for name in (old, *new)), old


@pytest.mark.parametrize(
    ("page", "heading", "names"),
    [
        ("data", "# Data", set(data_sources.names())),
        ("training", "## Losses", set(training_losses.names()) - ENSEMBLE_LOSSES),
        ("pruning", "## Scores", set(pruning_scores.names())),
        ("pruning", "## Methods", set(pruning_methods.names())),
        ("ensemble", "## Losses", ENSEMBLE_LOSSES),
        ("ensemble", "## Stopping rules", set(stopping_rules.names())),
    ],
)
def test_a_table_of_components_names_all_of_them(page: str, heading: str, names: set[str]) -> None:
    text = (ROOT / f"docs/{page}.md").read_text("utf-8")
    section = re.split(r"^## ", text[text.index(f"{heading}\n") + len(heading) :], maxsplit=1, flags=re.MULTILINE)[0]
    listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    assert {name for cell in listed for name in re.findall(r"\w+", cell)} == names


def test_attacks_in_the_documents_exist() -> None:
    known = {*attacks.names(), *ensemble_attacks.names(), "standard", "plus", "rand"}  # and variants of AutoAttack
    section = (ROOT / "docs/evaluation.md").read_text("utf-8").split("## Attacks\n")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+[a-z-]*)`", section)) <= known


@pytest.mark.parametrize("path", BY_NAME)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]+)?\)", path.read_text("utf-8")):
        linked = path.parent / target if target else path
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor[1:] in anchors(linked), f"{path.name} links to {target}{anchor}"


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
