"""Sites in an ordinary ``nn.Module``: where a group can act, and rescaling there."""

from metaopt.symmetry.finders.chain import ChainView, as_chain
from metaopt.symmetry.finders.find import find_sites
from metaopt.symmetry.finders.steps import Elementwise
from metaopt.symmetry.rescaling import rescale, rescaled
from metaopt.symmetry.site import Fit, LeftOut, ModuleSite, Sites, actions_for

__all__ = [
    "ChainView",
    "Elementwise",
    "Fit",
    "LeftOut",
    "ModuleSite",
    "Sites",
    "actions_for",
    "as_chain",
    "find_sites",
    "rescale",
    "rescaled",
]
