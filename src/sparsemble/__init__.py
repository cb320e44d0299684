"""sparsemble: one image classifier becomes a robust, compact ensemble of sparse sub-models."""

__version__ = "0.1.0"
