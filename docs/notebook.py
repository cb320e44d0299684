"""Writes examples/quick_tour.ipynb from docs/quick_tour.md: paragraphs become text cells, code blocks code cells.

python docs/notebook.py
"""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "quick_tour.md"
NOTEBOOK = DOCS.parent / "examples/quick_tour.ipynb"
CODE = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook() -> str:
    """Return the notebook as JSON, without outputs."""
    parts = CODE.split(PAGE.read_text("utf-8"))  # text, code, text, ...
    cells = []
    for i, part in enumerate(parts):
        source = part.strip().splitlines(keepends=True)
        if not source:
            continue
        if i % 2:
            cells.append(
                {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}
            )
        else:
            links = [re.sub(r"\]\((?!https?:|\.\./)", "](../docs/", line) for line in source]
            cells.append({"cell_type": "markdown", "metadata": {}, "source": links})
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    return json.dumps({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(), "utf-8")
