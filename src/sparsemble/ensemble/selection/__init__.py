"""Selection rules: which sub-models become the ensemble, one file each."""
