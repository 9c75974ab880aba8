"""The models of a server: loaded and compiled while it runs, one of them failing harms no other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from clue_jax.errors import UserError
from clue_jax.predictor import Predictor
from clue_jax.pretrained import load

_log = logging.getLogger(__name__)
WarmUp = Literal["own", "all", "none"]


@dataclass
class Served:
    """A model of a server.

    Attributes:
      name, path: as given on the command line.
      state: what it is doing.
      predictor: None until it is loaded.
      error: why it failed.
      progress: programs compiled.
    """

    name: str
    path: str
    state: Literal["loading", "compiling", "ready", "failed"] = "loading"
    predictor: Predictor | None = None
    error: str = ""
    progress: int = 0

    def about(self) -> dict[str, Any]:
        """What clients are told."""
        told: dict[str, Any] = {"name": self.name, "state": self.state}
        if self.error:
            told["error"] = self.error
        if self.state == "compiling":
            told["programs"] = self.progress
        if self.predictor and self.state == "ready":
            predictor = self.predictor
            told |= {
                "kinds": predictor.kinds,
                "labels": predictor.labels,
                "task": predictor.model.info.get("task"),
                "tokens": predictor.longest(predictor.kinds[0]),
                "layers": predictor.config.num_hidden_layers,
                "hidden": predictor.config.hidden_size,
            }
        return told


def parse(models: list[str]) -> dict[str, Served]:
    """NAME=DIR, as on the command line.

    Raises:
      UserError: for one without a name, or a name given twice.
    """
    found: dict[str, Served] = {}
    for text in models:
        name, sign, path = text.partition("=")
        if not sign or not name or not path or "/" in name or ":" in name:
            raise UserError(f"--model {text}: expected NAME=DIR, without / and : in the name")
        if name in found:
            raise UserError(f"--model {text}: there are two models of this name")
        found[name] = Served(name, path)
    if not found:
        raise UserError("--model NAME=DIR is missing")
    return found


def load_all(
    models: Mapping[str, Served],
    dtype: str,
    warm_up: WarmUp,
    stop: threading.Event,
    changed: Callable[[Served], None] = lambda model: None,
) -> None:
    """Loads and compiles one model after the other; what fails is said and left out.

    Args:
      models: whose state is changed.
      dtype: of the computation.
      warm_up: which programs are compiled: of the kind that a model is for, of all its kinds, none.
      stop: ends it early.
      changed: called when a model is ready or has failed.
    """
    for model in models.values():
        if stop.is_set():
            return
        started = time.monotonic()
        try:
            predictor = Predictor(load(model.path, dtype=jnp.dtype(dtype)))
            model.predictor, model.state = predictor, "compiling"
            own = predictor.kinds if warm_up == "all" else predictor.kinds[:1]
            for kind in own if warm_up != "none" else ():
                for _ in predictor.compile(kind):
                    model.progress += 1
                    if stop.is_set():
                        return
        except (UserError, OSError) as error:
            model.state, model.error = "failed", str(error)
            _log.error("model %s cannot be served: %s", model.name, error)
        except Exception as error:
            model.state, model.error = "failed", f"{type(error).__name__}: {error}"
            _log.exception("model %s cannot be served", model.name)
        else:
            model.state = "ready"
            seconds = round(time.monotonic() - started, 2)
            fields = {"model": model.name, "seconds": seconds, "programs": model.progress}
            _log.info("model %s is ready", model.name, extra={"fields": fields})
        changed(model)
