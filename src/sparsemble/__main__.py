"""`python -m sparsemble`, which `torchrun -m sparsemble` needs."""

from sparsemble.cli import main

if __name__ == "__main__":
    main()
