"""The finders by module that the library has; importing this enters them into ``KINDS``."""

from metaopt.symmetry.finders import gated, heads, lora, norms, stream, units

__all__ = ["gated", "heads", "lora", "norms", "stream", "units"]
