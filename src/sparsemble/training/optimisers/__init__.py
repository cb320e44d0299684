"""Step rules, one file each."""
