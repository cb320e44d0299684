"""What an attacker climbs in place of a team that stops early; seen only through the interfaces of `core`."""

from sparsemble.attacks.adaptive.surrogate import Surrogate, surrogates

__all__ = ["Surrogate", "surrogates"]

surrogates.walk("sparsemble.attacks.adaptive")
