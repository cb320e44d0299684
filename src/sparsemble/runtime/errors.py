"""The error of the runtime."""

from sparsemble.runtime.terminal_escape import printable


class RuntimeInputError(ValueError):
    """A file, an image or a setting that cannot be read or run; one sentence: the value, and what would be right.

    Args:
        message: may hold strings from a file; characters that affect a terminal are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
