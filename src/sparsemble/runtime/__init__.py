"""Run a sparse ensemble fast on a CPU, with the same answers."""
