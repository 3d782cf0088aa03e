"""Maps: subclasses of :class:`Map`, with the name of the class."""

from __future__ import annotations


class Map:
    directory = ""
    filename = ""

    @property
    def path(self) -> str:
        return f"{self.directory}/{self.filename}.SC2Map"


def get(name: str) -> Map:
    """The map of the subclass of that name."""
    classes, known = [Map], {}
    while classes:
        found = classes.pop()
        known[found.__name__] = found
        classes += found.__subclasses__()
    return known[name]()
