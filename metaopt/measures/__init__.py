"""What may tell a minimum that generalizes: sharpness, and the curvature of the minimum itself."""

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
