"""Which sub-models become the team, one file each."""
