"""The one exception for input that cannot be used."""

from collections.abc import Iterator
from contextlib import contextmanager

SHOWN = 1000  # characters of a message at either end


class InvalidInput(ValueError):
    """Something handed in is unusable; the message names it, what was found and what to do.

    Failures of the operating system (missing file, full disk, no permission) stay ``OSError``. Of a
    message that quotes something huge, the middle is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > 2 * SHOWN:
            message = f"{message[:SHOWN]} … {message[-SHOWN:]}"
        super().__init__(message)


@contextmanager
def sizes_named(what: str) -> Iterator[None]:
    """Turn what torch raises for sizes beyond its integers or the memory into InvalidInput."""
    try:
        yield
    except (TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInput(f"{what}: torch cannot make tensors of these sizes: {reason}") from error
