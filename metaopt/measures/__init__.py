"""Measures of weights that may tell how well a network generalizes (section 4 of the paper).

Sharpness is the mean loss around the weights. Curvature is that of random curves on the orbit
through the weights. The largest eigenvalues of the Hessian are a sharpness of another kind.
"""

from metaopt.measures.curvature import Curvature, network_curvature
from metaopt.measures.hessian import Hessian, hessian
from metaopt.measures.sharpness import Sharpness, sharpness

__all__ = [
    "Curvature",
    "Hessian",
    "Sharpness",
    "hessian",
    "network_curvature",
    "sharpness",
]
