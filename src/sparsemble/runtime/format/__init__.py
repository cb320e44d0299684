"""Read and write the packed file of an ensemble; nothing in a file is trusted."""
