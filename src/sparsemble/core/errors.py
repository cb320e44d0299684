"""The two ways a run ends badly; both carry one sentence for the user."""


class InputError(ValueError):
    """What the user asked for cannot be done; raised before any work (exit status 2)."""


class RunError(RuntimeError):
    """Work that had begun could not go on; what was computed is kept (exit status 1)."""
