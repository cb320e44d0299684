"""The quick tour runs, as a page and as a notebook made from it."""

import json
import subprocess
import sys
from pathlib import Path

from docs.notebook import NOTEBOOK, notebook

from sparsemble.core.results import EvaluationResult


def test_the_notebook_is_up_to_date_and_has_no_outputs() -> None:
    assert NOTEBOOK.read_text("utf-8") == notebook(), "`python docs/notebook.py` writes it anew"
    cells = json.loads(notebook())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 3
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_links_of_the_notebook_lead_somewhere() -> None:
    text = json.dumps(json.loads(notebook())["cells"])
    for name in ("evaluation.md", "checks.md"):
        assert f"(../docs/{name})" in text
        assert (NOTEBOOK.parent / "../docs" / name).exists()


RUN = """
import json, pathlib, sys
names = {}
for cell in json.loads(pathlib.Path(sys.argv[1]).read_text("utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
names["result"].save(pathlib.Path("result.json"))
"""


def test_the_cells_run_one_after_the_other(tmp_path: Path) -> None:
    words = [sys.executable, "-W", "error", "-c", RUN, str(NOTEBOOK)]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    result = EvaluationResult.load(tmp_path / "result.json")
    assert result.corruptions is not None
    assert result.clean_accuracy > 0.9
    assert result.robust_accuracy < result.corruptions.mean < result.clean_accuracy
    assert not result.checks_with("failed")
    assert f"robust accuracy {result.robust_accuracy:.1%}" in run.stdout
    assert "jpeg_compression" in run.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
