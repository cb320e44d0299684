"""Granularities: groups of weights that are kept or removed together, one file each."""
