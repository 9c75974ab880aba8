"""Makes the packages named in CLUE_JAX_WITHOUT look as if they were not installed."""

import os
from importlib.machinery import PathFinder

_ABSENT = frozenset(os.environ.get("CLUE_JAX_WITHOUT", "").split(","))
_find_spec = PathFinder.find_spec


# A class method as the one it stands in for: pytest takes it over as an attribute of a class of its
# own, where a plain function would become a method.
@classmethod
def _find_others(cls, name, path=None, target=None):
    return None if name.split(".")[0] in _ABSENT else _find_spec(name, path, target)


PathFinder.find_spec = _find_others
