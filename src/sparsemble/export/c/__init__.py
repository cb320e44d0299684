"""A packed ensemble as one file of C99 for processors without an operating system; needs no torch."""
