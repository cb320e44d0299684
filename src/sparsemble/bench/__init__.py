"""Engines side by side: what is measured, that their outputs agree, the timing."""
