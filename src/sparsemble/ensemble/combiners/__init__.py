"""Ways to make many logit vectors one, one file each."""
