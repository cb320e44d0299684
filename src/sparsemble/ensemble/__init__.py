"""Many sub-models as one: choose the team, combine, diversify, stop early."""
