"""How much memory a run took."""

import resource
import sys

import jax


def peak_memory_bytes() -> int:
    """The most that was in use at once: of the first device if it says, else of this process."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return int(statistics["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
