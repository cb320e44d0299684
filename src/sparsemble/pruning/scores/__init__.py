"""Pruning scores: the importance of each weight, one file each."""
