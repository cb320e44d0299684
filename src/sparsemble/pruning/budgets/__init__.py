"""What sparsity is a share of, one file each."""
