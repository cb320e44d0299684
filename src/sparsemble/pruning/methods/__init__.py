"""Ways from a dense model and a score to a mask, one file each."""
