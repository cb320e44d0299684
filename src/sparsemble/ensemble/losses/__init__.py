"""Ensemble losses, one file each."""
