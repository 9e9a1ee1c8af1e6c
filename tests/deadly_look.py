"""Stands for a decoder with a fault: some pictures kill the process. A module of its own, since processes import it."""

import os

from pixart.data.check.look import Seen
from pixart.data.pairs import Location


def look_or_die(place: Location) -> Seen:
    if place.path.startswith("deadly"):
        os._exit(9)
    return Seen("missing", place.path)
