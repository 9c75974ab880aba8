"""Makes the packages named in CLUE_JAX_WITHOUT impossible to import."""

import importlib.abc
import os
import sys


class _Absent(importlib.abc.MetaPathFinder):
    names = frozenset(os.environ.get("CLUE_JAX_WITHOUT", "").split(","))

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Absent())
