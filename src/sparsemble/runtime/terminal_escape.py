"""Words from files, on their way to a terminal."""

import unicodedata

CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Kinds of characters that steer a terminal, end a line, or are none by themselves."""
TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Kinds of characters that show others in another order."""


def steers(character: str) -> bool:
    """Return whether a character does something to what is shown around it."""
    return unicodedata.category(character) in CONTROL or unicodedata.bidirectional(character) in TURNS


def printable(words: str) -> str:
    """Return words with escapes in place of characters that would steer a terminal."""
    return "".join(one.encode("unicode_escape").decode() if steers(one) else one for one in words)
