"""`sparsemble compare`: several result files side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsemble.core.artifacts import read_json
from sparsemble.core.errors import InputError
from sparsemble.evaluation.compare import compare
from sparsemble.report import validate_evaluation, write_comparison


def compare_files(paths: Sequence[Path], out: Path | None) -> dict[str, Any]:
    """Compare results on the same images.

    Args:
        paths: two or more files that `sparsemble evaluate` left; a folder stands for the `evaluation.json` in it.
        out: folder for a page; None: none is written.

    Raises:
        InputError: fewer than two, no results, or results that cannot stand in one table.
    """
    if len(paths) < 2:
        raise InputError("compare needs two or more results")
    results = []
    for path in paths:
        file = path / "evaluation.json" if path.is_dir() else path
        result = read_json(file)
        try:
            validate_evaluation(result)
        except InputError as error:
            raise InputError(f"{file} is no result of `sparsemble evaluate`: {error}") from error
        results.append((result["name"], result))
    found = compare(results)
    if out:
        write_comparison(found, out)
    return found
