"""Writes docs/results.md, the fields of all result files, from the docstrings of `sparsemble/core/results`.

python docs/results_page.py
"""

import ast
from pathlib import Path

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "src/sparsemble/core/results"
PAGE = DOCS / "results.md"
FILES = ("evaluation", "evaluation_parts", "corruptions", "comparison", "run", "study", "cost_plan", "deployment")
HIDDEN = {"Examples"}
"""Not part of any file."""
WORDS = {
    "str": "text",
    "float": "number",
    "int": "integer",
    "bool": "true or false",
    "Any": "any",
    "None": "null",
    "Status": "`failed` or `skipped` or `passed`",
}
INTRODUCTION = """# Result files

Every command writes its result as JSON. In Python the same results are frozen dataclasses of `sparsemble.core.results`
with `.to_json()`, `.save(path)` and `.load(path)`; reading is strict: a missing, unknown or contradictory field is an
error that names the file and the field.

Accuracies and fractions lie in [0, 1]; distances are in units of images in [0, 1]. A list by images has one entry an
image, in the order of `data.indices`; an outcome is 1 where the deployed prediction, in float32, is the true class. An
optional field is left out if it has no value. Two runs with the same recipe, seed and machine differ in times only.

This page is generated: `python docs/results_page.py`.
"""


def page() -> str:
    """Return the text of the page."""
    return "\n".join([INTRODUCTION, *(section(name) for name in FILES)])


def section(name: str) -> str:
    """Return the tables of one module, whole files first, each followed by the tables it contains."""
    tree = ast.parse((RESULTS / f"{name}.py").read_text("utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and node.name not in HIDDEN}
    roots = [node.name for node in classes.values() if is_file(node)]
    order = [*roots, *(other for other in classes if other not in roots)]
    return "\n".join(table(classes[other], "##" if other in roots else "###") for other in order)


def is_file(node: ast.ClassDef) -> bool:
    """Return whether a dataclass is a file of its own."""
    return any(isinstance(base, ast.Name) and base.id == "ResultFile" for base in node.bases)


def table(node: ast.ClassDef, level: str) -> str:
    """Return the heading, the docstring and the fields of one dataclass."""
    lines = [f"{level} {node.name}", one_line(ast.get_docstring(node) or ""), ""]
    lines += ["| field | type | meaning |", "|---|---|---|"]
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            lines.append(f"| `{statement.target.id}` | {type_of(statement)} | {meaning(following)} |")
    return "\n".join([*lines, ""])


def type_of(field: ast.AnnAssign) -> str:
    """Return the type of a field as people write it."""
    words = type_words(field.annotation)
    return words.removesuffix(" or null") + ", optional" if words.endswith(" or null") else words


def type_words(node: ast.expr) -> str:
    """Return an annotation in words, with links to the tables of dataclasses."""
    match node:
        case ast.BinOp(left=left, right=right):
            return f"{type_words(left)} or {type_words(right)}"
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            values = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return " or ".join(f"`{ast.literal_eval(value)}`" for value in values)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[entry, *_])):
            return f"list of ({type_words(entry)})" if isinstance(entry, ast.BinOp) else f"list of {type_words(entry)}"
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, ast.Name(id="Any")])):
            return "table"
        case ast.Subscript(value=ast.Name(id="dict" | "list" as kind), slice=inner):
            entry = inner.elts[1] if isinstance(inner, ast.Tuple) else inner
            return f"{'table' if kind == 'dict' else 'list'} of {type_words(entry)}"
        case ast.Name(id=name) if name in WORDS:
            return WORDS[name]
        case ast.Name(id=name):
            return f"[{name}](#{name.lower()})"
    return WORDS[ast.unparse(node)]


def meaning(statement: ast.stmt | None) -> str:
    """Return the docstring below a field."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return one_line(str(statement.value.value))
    return ""


def one_line(text: str) -> str:
    """Return a text on one line, as a cell of a table takes it."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
