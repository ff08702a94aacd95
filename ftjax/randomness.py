"""Where random numbers come from: the run's seed, a named purpose, and the step."""

import zlib

import jax


def run_key(seed: int | jax.Array, purpose: str) -> jax.Array:
    """The random key of a purpose in a run.

    Args:
        seed: the run's, int or uint32 scalar (also traced).
        purpose: such as "dropout" or "head"; each has its own stream.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
