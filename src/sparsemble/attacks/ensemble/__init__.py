"""Attacks on the members, combiner and stopping rule of an ensemble, through the interfaces of `core`."""

from sparsemble.attacks.ensemble.surrogate import surrogates

surrogates.register_package("sparsemble.attacks.ensemble")
