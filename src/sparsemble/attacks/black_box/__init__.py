"""Attacks that use no gradients of the model they attack: logits, predicted classes, or nothing of it at all."""
