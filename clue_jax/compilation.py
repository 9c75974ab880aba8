"""Compiled programs that are kept, so that the next start on the same accelerator is quick."""

from __future__ import annotations

import jax

from clue_jax.fetch import cache_directory


def keep_compiled() -> None:
    """Has jax keep what it compiles for an accelerator in the cache folder, and look there first.

    JAX_COMPILATION_CACHE_DIR says where else, or with an empty value that nothing is kept. Programs
    for a CPU are compiled for the very processor and soon enough; without that variable they are
    not kept.
    """
    if jax.config.jax_compilation_cache_dir is None and jax.default_backend() != "cpu":
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
