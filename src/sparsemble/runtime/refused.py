"""The way a call of the runtime ends badly."""


class Refused(ValueError):
    """What was given cannot be read or run; one sentence that names the value and says what would be right."""
