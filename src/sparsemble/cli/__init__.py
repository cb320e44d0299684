"""The command line: thin commands; rooms are imported when a command needs them."""

from sparsemble.cli import deploy, evaluate, list, recipes
from sparsemble.cli.app import app, main

__all__ = ["app", "deploy", "evaluate", "list", "main", "recipes"]
