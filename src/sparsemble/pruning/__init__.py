"""Decide which weights stay: score, method, granularity, mask."""
