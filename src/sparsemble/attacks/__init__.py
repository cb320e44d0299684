"""Find the worst image inside a threat model; never touch the model."""
