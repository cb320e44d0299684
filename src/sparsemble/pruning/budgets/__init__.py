"""Budgets: the cost that sparsity is a share of, one file each."""
