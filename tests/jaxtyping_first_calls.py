"""The type checker of the tests: every function of the package is checked against its shapes and types.

Each test checks the first calls of a function, as checking all of them takes a sixth of the time of all tests;
`SPARSEMBLE_TESTS=full` checks every call. (`evaluation.checks.forward` passes over the frames of files so named.)
"""

import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

CHECKED_CALLS = 5

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is fine where a float is wanted
calls: Counter[Callable] = Counter()
"""How often the running test called each function; emptied before each test."""
_check_all = jaxtyping.jaxtyped


def _check_first(function: Any, *, typechecker: Any) -> Any:
    if isinstance(function, type):
        return _check_all(function, typechecker=typechecker)
    checked = functools.cache(functools.partial(_check_all, function, typechecker=typechecker))  # made when called

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls[function] += 1
        return (checked() if calls[function] <= CHECKED_CALLS else function)(*args, **kwargs)

    return call


def install() -> None:
    """Check whatever is imported from the package after this."""
    if os.environ.get("SPARSEMBLE_TESTS") != "full":
        # the hook decorates each function with `@jaxtyping.jaxtyped(typechecker=...)`
        jaxtyping.jaxtyped = lambda *, typechecker: functools.partial(_check_first, typechecker=typechecker)
    jaxtyping.install_import_hook("sparsemble", "tests.jaxtyping_first_calls.check")
