"""Budgets: the cost that sparsity is a fraction of, one file each."""
