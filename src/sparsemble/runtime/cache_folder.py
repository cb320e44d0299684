"""Where things are kept that can be made again: compiled code, decoded photographs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return SPARSEMBLE_CACHE, or `sparsemble` in the user's cache folder."""
    configured = os.environ.get("SPARSEMBLE_CACHE")
    if configured:
        return Path(configured)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "sparsemble"
