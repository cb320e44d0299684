"""The command line without any work: help, lists, what reaches the pipeline, and how errors come out."""

import importlib.util
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import sparsemble
import sparsemble.pipeline.run as pipeline
from sparsemble.cli import main
from sparsemble.cli.app import stoppable
from sparsemble.cli.recipes import COMMANDS as STAGES
from sparsemble.core.errors import InputError, RunError
from sparsemble.pipeline import evaluate_command
from sparsemble.pipeline.catalogue import catalogue
from sparsemble.pipeline.recipe import load_recipe, shipped

SMOKE = Path(__file__).parents[1] / "end_to_end" / "smoke.toml"
COMMANDS = [*STAGES, "evaluate", "compare", "list", "show"]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Return a function from words to exit status, output and errors."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparsemble", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    yield run
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger("sparsemble").setLevel(logging.NOTSET)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Put a list in the place of the pipeline; it holds what the pipeline was asked for."""
    heard: list[tuple[Any, ...]] = []

    def run(*words: Any) -> list[Any]:
        heard.append(words)
        return []

    monkeypatch.setattr(pipeline, "run", run)
    return heard


class TestHelp:
    def test_without_words_it_explains_itself(self, call: Call) -> None:
        status, out, err = call()
        assert status in (0, 2)
        for command in COMMANDS:
            assert f" {command} " in out + err

    def test_version(self, call: Call) -> None:
        assert call("--version") == (0, f"sparsemble {sparsemble.__version__}\n", "")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself_with_an_example(self, call: Call, command: str) -> None:
        status, out, err = call(command, "--help")
        assert (status, err) == (0, "")
        text = " ".join(out.split())
        assert f"sparsemble {command} " in text.partition("Example")[2]
        assert "[bold]" not in out
        assert "[/]" not in out

    @pytest.mark.parametrize("command", STAGES)
    def test_every_option_of_a_run_is_explained(self, call: Call, command: str) -> None:
        _, out, _ = call(command, "--help")
        for option in ("--out", "--set", "--json", "--seed", "--device", "--workers", "--engine", "--force", "--quiet"):
            (line,) = [line for line in out.splitlines() if line.strip(" │").startswith(option + " ")]
            assert len(line.strip(" │").split()) > 4, line


class TestList:
    def test_names_every_part_and_recipe_once(self, call: Call) -> None:
        status, out, err = call("list")
        assert (status, err) == (0, "")
        lines = [line.split("  ") for line in out.splitlines()]
        named = [(words[0].strip(), [w for w in words if w.strip()][1].strip()) for words in lines if words[0].strip()]
        assert named[1:] == [(entry.kind, entry.name) for entry in catalogue()]
        assert "…" not in out

    @pytest.mark.parametrize("kind", sorted({entry.kind for entry in catalogue()}))
    def test_of_a_kind_names_those_of_the_kind_only(self, call: Call, kind: str) -> None:
        status, out, _ = call("list", kind)
        assert status == 0
        found = {
            line.strip().removeprefix(kind).split()[0] for line in out.splitlines()[1:] if line.strip().startswith(kind)
        }
        assert found == {entry.name for entry in catalogue() if entry.kind == kind}

    def test_an_unknown_kind_gets_the_nearest(self, call: Call) -> None:
        assert call("list", "attak") == (2, "", 'error: "attak" is not a kind of component; did you mean "attack"?\n')

    def test_stages_are_no_parts(self, call: Call) -> None:
        assert call("list", "stage")[0] == 2


class TestShow:
    def test_a_part_comes_with_its_settings_and_source(self, call: Call) -> None:
        status, out, err = call("show", "pgd")
        assert (status, err) == (0, "")
        assert out.startswith("attack pgd\n\n")
        for words in ("Madry et al. 2018", "  steps: int = 20", "  restarts: int = 1"):
            assert words in out

    def test_what_is_required_is_said(self, call: Call) -> None:
        assert "  path: str  (required)" in call("show", "arrays")[1]

    def test_an_alias_says_what_it_stands_for(self, call: Call) -> None:
        assert "name = 'resnet', depth = 50" in call("show", "resnet50")[1]

    @pytest.mark.parametrize("name", sorted(shipped()))
    def test_a_recipe_is_shown_word_for_word(self, call: Call, name: str, tmp_path: Path) -> None:
        _, out, _ = call("show", name)
        path = tmp_path / f"{name}.toml"
        path.write_text(out.partition(f"recipe {name}\n\n")[2], "utf-8")
        assert load_recipe(str(path)) == load_recipe(name)

    @pytest.mark.parametrize("name", sorted({entry.name for entry in catalogue()}))
    def test_everything_that_is_listed_can_be_shown(self, call: Call, name: str) -> None:
        status, out, err = call("show", name)
        assert (status, err) == (0, "")
        for entry in catalogue():
            if entry.name == name:
                assert f"{entry.kind} {name}\n" in out

    def test_an_unknown_name_gets_the_nearest(self, call: Call) -> None:
        assert call("show", "apgdd")[::2] == (
            2,
            'error: "apgdd" is no component, recipe or study; did you mean "apgd"?\n',
        )


class TestWhatReachesThePipeline:
    def test_settings_seed_and_options(self, call: Call, asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
        words = ["digits", "--seed", 7, "--set", "train.epochs=3", "--set", "model.width=8", "--out", tmp_path / "x"]
        assert call("train", *words, "--device", "cpu", "--workers", 2, "--force", "--quiet")[0] == 0
        ((recipe, title, command, options),) = asked
        assert (recipe.seed, recipe.train.epochs, recipe.model.width, title) == (7, 3, 8, "digits")
        assert options == pipeline.RunOptions(
            folder=tmp_path / "x", device="cpu", workers=2, engine="local", until="train", quiet=True, force=True
        )
        assert shlex.split(command)[:3] == ["sparsemble", "run", "digits"]

    @pytest.mark.parametrize(("command", "until"), [(name, until) for name, (until, _) in STAGES.items()])
    def test_each_command_stops_at_its_stage(self, call: Call, asked: Any, command: str, until: str) -> None:
        assert call(command, "digits", "--quiet")[0] == 0
        assert (asked[0][3].until, asked[0][3].folder) == (until, Path("runs/digits"))

    def test_the_command_in_the_report_gives_the_same_recipe(self, call: Call, asked: list[tuple[Any, ...]]) -> None:
        call("run", "digits", "-q", "--seed", 3, "--set", "evaluate.attacks=[{name='pgd', label='a b'}]")
        call(*shlex.split(asked[0][2])[1:], "-q")
        assert asked[1][0] == asked[0][0]
        assert asked[1][2] == asked[0][2]
        assert asked[0][0].evaluate.attacks[0].label == "a b"

    def test_evaluate_on_a_recipe_runs_its_table(self, call: Call, asked: list[tuple[Any, ...]]) -> None:
        assert call("evaluate", "digits", "--seed", 2, "--quiet")[0] == 0
        assert (asked[0][0].seed, asked[0][3].until) == (2, "evaluate")

    def test_evaluate_on_a_recipe_can_ask_for_seed_0(self, call: Call, asked: list[tuple[Any, ...]]) -> None:
        assert load_recipe(str(SMOKE))[1].seed == 3
        call("evaluate", SMOKE, "--seed", 0, "--quiet")
        assert asked[0][0].seed == 0

    @pytest.mark.parametrize("option", ["--eps=4/255", "--attacks=pgd", "--images=10", "--norm=l2", "--row=dense"])
    def test_evaluate_on_a_recipe_refuses_what_it_does_not_use(self, call: Call, asked: Any, option: str) -> None:
        status, _, err = call("evaluate", "digits", option)
        assert status == 2
        assert option.split("=")[0] in err


class TestQuiet:
    def test_what_a_data_set_leaves_out_is_not_printed(
        self, call: Call, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def run(*_: Any) -> list[Any]:
            logging.getLogger("sparsemble").warning("2 images are left out")
            return []

        monkeypatch.setattr(pipeline, "run", run)
        call("run", "digits", "--quiet")
        assert not caplog.messages
        call("train", "digits")
        assert caplog.messages == ["2 images are left out"]


class TestCorruptions:
    @pytest.mark.parametrize(
        ("words", "corruptions"),
        [
            (["--corruptions", "it.onnx"], "generated"),
            (["it.onnx", "--corruptions"], "generated"),
            (["--corruptions", "--eps=0.1", "it.onnx"], "generated"),
            (["--corruptions", "folder", "it.onnx"], "folder"),
            (["it.onnx", "--corruptions=folder"], "folder"),
            (["it.onnx"], ""),
        ],
    )
    def test_may_stand_without_a_folder_anywhere(
        self, words: list[str], corruptions: str, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def prepare(options: Any) -> Any:
            raise InputError(f"{options.target} {options.corruptions}")

        monkeypatch.setattr(evaluate_command, "prepare", prepare)
        assert call("evaluate", *words) == (2, "", f"error: it.onnx {corruptions}\n")

    def test_alone_it_lacks_a_target(self, call: Call) -> None:
        status, _, err = call("evaluate", "--corruptions")
        assert status == 2
        assert "Missing argument 'TARGET'" in err


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status", "words"),
        [
            (InputError("sparsity = 2 must lie in [0, 1)"), 2, "error: sparsity = 2 must lie in [0, 1)\n"),
            (RunError("the loss became nan"), 1, "failed: the loss became nan\n"),
            (
                KeyboardInterrupt(),
                1,
                "stopped; what is finished is kept in runs/digits, run the same command to go on\n",
            ),
        ],
    )
    def test_come_out_as_a_sentence_and_a_status(
        self, call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, words: str
    ) -> None:
        def run(*_: Any) -> list[Any]:
            raise error

        monkeypatch.setattr(pipeline, "run", run)
        assert call("run", "digits") == (status, "", words)

    def test_a_sentence_with_brackets_is_not_taken_for_markup(self, call: Call) -> None:
        _, _, err = call("run", "digits", "--set", "threat.norm=[red]x[/red]")
        assert "[red]x[/red]" in err

    @pytest.mark.parametrize(
        "words",
        [
            ["nothing"],
            ["run"],
            ["run", "digits", "--sed", "1"],
            ["run", "digits", "--workers", "two"],
            ["show"],
            ["compare"],
        ],
    )
    def test_wrong_usage_has_status_2_and_no_traceback(self, call: Call, words: list[str]) -> None:
        status, out, err = call(*words)
        assert (status, out) == (2, "")
        assert "Traceback" not in err
        assert "Usage" in err

    @pytest.mark.parametrize("words", [["run", "digits"], ["list"], ["show", "pgd"], ["evaluate", "digits"]])
    def test_without_the_extra_it_says_what_to_install(
        self, call: Call, monkeypatch: pytest.MonkeyPatch, words: list[str]
    ) -> None:
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else found(name, *a))
        status, out, err = call(*words)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: `sparsemble {words[0]}` needs torch; install the extra `train`: ")
        assert err.endswith("pip install 'sparsemble[train]'\n")

    def test_a_stop_from_outside_is_like_one_from_the_keyboard(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(typer.Exit), stoppable("go on"):
                signal.raise_signal(signal.SIGTERM)
        finally:
            signal.signal(signal.SIGTERM, before)
