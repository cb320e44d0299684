"""The way a call of the runtime ends badly."""

from sparsemble.runtime.terminal_escape import printable


class RuntimeInputError(ValueError):
    """What was given cannot be read or run; one sentence that names the value and says what would be right.

    Args:
        sentence: may hold words from a file: what would steer a terminal is escaped.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))
