"""The words everybody uses: tensor types, threat model, interfaces, registry, recipe, artifacts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsemble.core.threat import ThreatModel
    from sparsemble.core.types import seeded

__all__ = ["ThreatModel", "seeded"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for: the command line must start without it."""
    if name == "ThreatModel":
        from sparsemble.core.threat import ThreatModel

        return ThreatModel
    if name == "seeded":
        from sparsemble.core.types import seeded

        return seeded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
