"""Name the extra of this package that a missing package belongs to."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def of_extra(name: str) -> Iterator[None]:
    """Let the message of a failed import inside say how to install the package.

    Args:
        name: A key of optional-dependencies in pyproject.toml.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"This needs the package {error.name!r} of the extra {name!r}: pip install 'refinecam-lib[{name}]'"
        raise ModuleNotFoundError(message, name=error.name) from error
