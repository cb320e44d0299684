"""The method in reading order: train, prune, select, ensemble, calibrate, evaluate, export, report."""
