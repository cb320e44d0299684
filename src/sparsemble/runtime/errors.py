"""The error of the runtime; strings from files are escaped before they reach a terminal."""

import unicodedata

CONTROL_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, surrogates, and line and paragraph separators."""
BIDIRECTIONAL_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional classes of characters that change the order in which others are shown."""


def affects_terminal(character: str) -> bool:
    """Return whether a character changes how the text around it is shown."""
    return (
        unicodedata.category(character) in CONTROL_CATEGORIES
        or unicodedata.bidirectional(character) in BIDIRECTIONAL_CONTROLS
    )


def printable(text: str) -> str:
    """Return a text with escapes in place of the characters that affect a terminal."""
    return "".join(c.encode("unicode_escape").decode() if affects_terminal(c) else c for c in text)


class RuntimeInputError(ValueError):
    """A file, an image or a setting that cannot be read or run; one sentence: the value, and what would be right.

    Args:
        message: may hold strings from a file; characters that affect a terminal are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
