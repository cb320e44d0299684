"""The two kinds of errors shown to the user, each with a message of one sentence."""


class InputError(ValueError):
    """An invalid request; raised before any work (exit status 2)."""


class RunError(RuntimeError):
    """A failure during work; finished results are kept (exit status 1)."""
