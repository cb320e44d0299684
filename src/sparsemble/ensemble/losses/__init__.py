"""Losses of whole ensembles, one file each."""
