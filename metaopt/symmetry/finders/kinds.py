"""The finders by module that the library has; importing this enters them into ``KINDS``.

The readers of attention layers enter ``ATTENTIONS``, likewise.
"""

from metaopt.symmetry.finders.attention import ATTENTIONS, of_torch
from metaopt.symmetry.finders.attention_names import by_names
from metaopt.symmetry.finders.gated import gated
from metaopt.symmetry.finders.heads import queries_keys, values_outputs
from metaopt.symmetry.finders.lora import low_rank
from metaopt.symmetry.finders.network import KINDS
from metaopt.symmetry.finders.norms import norm_gains
from metaopt.symmetry.finders.stream import stream
from metaopt.symmetry.finders.units import units

ATTENTIONS.add("torch", of_torch)
ATTENTIONS.add("by_names", by_names)

KINDS.add("low_rank", low_rank)
KINDS.add("units", units)
KINDS.add("values_outputs", values_outputs)
KINDS.add("queries_keys", queries_keys)
KINDS.add("gated", gated)
KINDS.add("norm_gains", norm_gains)
KINDS.add("stream", stream)

__all__ = ["KINDS"]
