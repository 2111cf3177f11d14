"""Names of data sets, as the commands take them: names, patterns and files of names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from dnd_fast.errors import InvalidInput
from dnd_fast.files import read_bytes
from dnd_fast.text.records import decode
from dnd_fast.train.adapters.collection import Collection


def find_names(
    collection: Collection, patterns: Sequence[str], others: Sequence[str] = ()
) -> list[str]:
    """Names of data sets from names, patterns as of file names, and ``@FILE``, one name a line.

    Names in a file may be of data sets that nobody has.

    Args:
        collection: Collection of data sets.
        patterns: Names, patterns and files.
        others: Names of further data sets.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: a name or pattern fits neither a data set of the collection nor another.
    """
    names: dict[str, None] = {}
    known = [*collection.names, *others]
    for pattern in patterns:
        if pattern.startswith("@"):
            names |= dict.fromkeys(read_names(pattern))
            continue
        fitting = [name for name in known if fnmatchcase(name, pattern)]
        if not fitting:
            raise InvalidInput(
                f"{collection.folder} has no data set {pattern!r}; it has {', '.join(known)}."
            )
        names |= dict.fromkeys(fitting)
    return list(names)


def read_names(argument: str) -> list[str]:
    """Return the argument itself, or of ``@FILE`` the lines that are not blank.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: it is no regular file of UTF-8 text.
    """
    if not argument.startswith("@"):
        return [argument]
    path = Path(argument[1:])
    lines = decode(read_bytes(path), path).splitlines()
    return [name for line in lines if (name := line.strip())]
