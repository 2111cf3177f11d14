"""The one exception for input that cannot be used."""


class InvalidInput(ValueError):
    """Something handed in is unusable; the message names it, what was found and what to do.

    Failures of the operating system (missing file, full disk, no permission) stay ``OSError``.
    """
