"""The type checker of the tests: beartype, with Python's rule that an int is fine where a float is wanted."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
