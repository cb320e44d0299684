"""Combiners: from the logits of several members to one logit vector, one file each."""
