"""The command line: words into calls of the pipeline; rooms are imported when a command needs them."""

from sparsemble.cli import recipes
from sparsemble.cli import deploy
from sparsemble.cli import list
from sparsemble.cli import evaluate
from sparsemble.cli.app import app, main

__all__ = ["app", "judge", "main", "recipes", "teams", "tell"]
