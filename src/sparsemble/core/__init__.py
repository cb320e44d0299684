"""What every room shares: tensor types, threat models, interfaces, component registry, config reading, artifacts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsemble.core.threat import ThreatModel
    from sparsemble.core.types import seeded

__all__ = ["ThreatModel", "seeded"]


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use: the command line must start without it."""
    if name == "ThreatModel":
        from sparsemble.core.threat import ThreatModel

        return ThreatModel
    if name == "seeded":
        from sparsemble.core.types import seeded

        return seeded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
