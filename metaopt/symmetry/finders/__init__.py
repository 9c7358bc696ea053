"""Sites in an ordinary ``nn.Module``: where a group can act, and rescaling there."""

from metaopt.network.chain_view import ChainView, as_chain
from metaopt.network.find import find_sites
from metaopt.network.rescaling import rescale, rescaled
from metaopt.network.site import Fit, LeftOut, ModuleSite, Sites, actions_for
from metaopt.network.steps import Elementwise

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
