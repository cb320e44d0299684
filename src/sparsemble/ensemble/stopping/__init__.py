"""Stopping rules, one file each."""
