"""`python -m sparsemble.cli`."""

from sparsemble.cli import main

if __name__ == "__main__":
    main()
