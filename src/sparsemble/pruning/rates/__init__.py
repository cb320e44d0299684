"""Layer rates: how a budget is divided among layers, one file each."""
