"""Losses of whole teams, one file each."""
