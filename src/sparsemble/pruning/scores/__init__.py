"""How much each weight matters, one file each."""
