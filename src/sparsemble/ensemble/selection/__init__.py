"""Which sub-models become the ensemble, one file each."""
