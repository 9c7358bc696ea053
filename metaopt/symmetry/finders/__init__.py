"""Finders: functions that find, in an ordinary ``nn.Module``, the sites where a group can act."""

from metaopt.symmetry.finders.chain import as_chain
from metaopt.symmetry.finders.find import (
    FINDERS,
    Finder,
    Findings,
    between_layers,
    choose_sites,
    find_sites,
)
from metaopt.symmetry.finders.sites import Sites
from metaopt.symmetry.finders.steps import STEPS, Call, Step
from metaopt.symmetry.finders.trace import Trace

__all__ = [
    "FINDERS",
    "STEPS",
    "Call",
    "Finder",
    "Findings",
    "Sites",
    "Step",
    "Trace",
    "as_chain",
    "between_layers",
    "choose_sites",
    "find_sites",
]
