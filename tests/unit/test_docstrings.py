"""Every public function with three or more parameters documents them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import sparsemble

SRC = Path(sparsemble.__file__).parent


def functions(
    tree: ast.AST, owner: ast.ClassDef | None = None
) -> Iterator[tuple[ast.ClassDef | None, ast.FunctionDef]]:
    """Yield public functions and methods of public classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node, node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield owner, node


def documents(function: ast.FunctionDef) -> bool:
    return "Args:" in (ast.get_docstring(function) or "")


def parameters(function: ast.FunctionDef) -> int:
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([argument for argument in given if argument.arg not in ("self", "cls")])


def is_command(function: ast.FunctionDef) -> bool:
    """Commands of the command line document their options for `--help`."""
    return any("command" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_public_functions_with_three_or_more_parameters_have_args() -> None:
    every = [
        (path, *pair) for path in sorted(SRC.rglob("*.py")) for pair in functions(ast.parse(path.read_text("utf-8")))
    ]
    # What implements a documented method of an interface need not repeat it.
    interfaces = {function.name for _, owner, function in every if owner and documents(function)}
    missing = [
        f"{path.relative_to(SRC)}: {function.name}"
        for path, owner, function in every
        if parameters(function) >= 3
        and not documents(function)
        and not is_command(function)
        and not (owner and owner.bases and function.name in interfaces)
    ]
    assert len(every) > 500
    assert not missing, "\n".join(missing)
