"""From a trained ensemble to files others can run."""
