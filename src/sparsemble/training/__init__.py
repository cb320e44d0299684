"""One loop, and the objectives that make a model robust."""
