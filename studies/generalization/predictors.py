"""Measures that may predict the validation loss of a network: one number a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from metaopt.measures.around import Points, Surroundings
from metaopt.measures.column_loss import cross_entropy
from metaopt.measures.curvature import mean_curvature, random_elements
from metaopt.measures.directions import unit_directions
from metaopt.measures.hessian import Hessian
from metaopt.measures.sharpness import DISPLACEMENTS
from metaopt.symmetry import LayerInput, chain_orbit, make_action
from metaopt.symmetry.objectives import LossFunction
from studies.generalization.networks import ALONE, CHAIN, Weights, single
from studies.generalization.setting import Rows

SCALES = (0.1, 1.0, 10.0, 30.0)
"""Of the displacements 0.001, 0.011, ..., 0.191."""

LARGEST = 10  # eigenvalues that are looked for: one for each class, which stand apart
PRODUCT = 10  # of them in phi_2
MODELS_AT_A_TIME = 10  # for curvatures, whose derivatives take several copies of the weights

Numbers = list[float]


def sharpness_at(scale: float) -> str:
    """Name of phi with the displacements times ``scale``."""
    return f"phi, {scale * DISPLACEMENTS[0]:g} to {scale * DISPLACEMENTS[-1]:g}"


@dataclass(frozen=True)
class Measured:
    """On what the predictors are taken, and how finely.

    Attributes:
        images: all training images.
        directions, share: of phi, and the images of each direction.
        few: images of the Hessian.
        curves, curved: of psi, and the images of its curves.
    """

    images: Rows
    directions: int
    share: int
    few: int
    curves: int
    curved: Tensor


def predictors(weights: Weights, measured: Measured) -> dict[str, Callable[[], Numbers]]:
    """Return the measures by name, each computed when it is called."""
    spectra = cache(partial(_spectra, weights, measured))
    exact = min(weights[0].shape[1], len(measured.curved))
    return {
        **{sharpness_at(scale): partial(_sharpness, weights, measured, scale) for scale in SCALES},
        "psi": lambda: _curvature(weights, measured, len(measured.curved)),
        f"psi, {exact} images": lambda: _curvature(weights, measured, exact),
        f"phi_2, {PRODUCT} eigenvalues": lambda: _log_products(spectra()[:, :PRODUCT]).tolist(),
        "phi_1, above the median fifth eigenvalue": lambda: _counts(
            spectra(), float(np.nanmedian(spectra()[:, 4]))
        ).tolist(),
        "weight norm": lambda: _norms(weights),
    }


def _sharpness(weights: Weights, measured: Measured, scale: float) -> Numbers:
    """phi of each network: each direction on images of its own, the same for all networks."""
    x, y = measured.images
    one = next(single(weights))
    directions = unit_directions(one, measured.directions, torch.Generator().manual_seed(0))
    total = torch.zeros(len(weights[0]), dtype=torch.float64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    share = min(measured.share, len(y))
    bar = tqdm(range(measured.directions), desc="phi", unit="direction")
    with torch.no_grad():
        for index in bar:
            own = order.roll(-index * share)[:share]
            labels = y[own]
            points = Points(
                scale * torch.tensor(DISPLACEMENTS), [d[index, None] for d in directions]
            )
            around = Surroundings(ALONE, x[own].mT, points)
            for model, layers in enumerate(single(weights)):
                losses = around.losses(ALONE.layers(layers), partial(cross_entropy, y=labels))
                total[model] += losses.mean()
    return (total / measured.directions).tolist()


def _curvature(weights: Weights, measured: Measured, images: int) -> Numbers:
    """psi of each network under eq. 78, along the same elements."""
    action = make_action("post_activation", max_defect=float("inf"))
    layer_input = LayerInput(measured.curved[:images].mT.double())
    orbit = chain_orbit(CHAIN, weights, layer_input, action)
    one = next(single(weights))
    elements = random_elements(orbit, one, measured.curves, torch.Generator().manual_seed(0))
    found: Numbers = []
    with torch.no_grad():
        for own in zip(*(torch.split(w, MODELS_AT_A_TIME) for w in weights), strict=True):
            found += mean_curvature(orbit, own, elements).tolist()
    return found


def _spectra(weights: Weights, measured: Measured) -> NDArray[np.float64]:
    """The largest eigenvalues of the Hessian of each network, ``(models, LARGEST)``."""
    x, y = (side[: measured.few] for side in measured.images)

    def loss(values: Sequence[Tensor]) -> Tensor:
        return functional.cross_entropy(ALONE.output(ALONE.layers(values), x.mT).mT, y)

    bar = tqdm(single(weights), total=len(weights[0]), desc="Hessian", unit="network")
    return np.stack([_largest(loss, own) for own in bar])


def _largest(loss: LossFunction, own: Weights) -> NDArray[np.float64]:
    """NaN of a network that diverged."""
    with torch.no_grad():
        if not loss(own).isfinite():
            return np.full(LARGEST, np.nan)
    return Hessian(loss, own).largest(LARGEST, tolerance=1e-2)


def _log_products(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """phi_2 of each network; NaN where an eigenvalue is not positive."""
    sums: NDArray[np.float64] = np.log(np.where(values > 0, values, np.nan)).sum(axis=1)
    return sums


def _counts(values: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """phi_1 of each network; NaN where there is no spectrum."""
    counts: NDArray[np.float64] = (values > threshold).sum(axis=1).astype(float)
    return np.where(np.isnan(values).any(axis=1), np.nan, counts)


def _norms(weights: Weights) -> Numbers:
    squares = [weight.double().square().sum(dim=(1, 2)) for weight in weights]
    return torch.stack(squares).sum(dim=0).sqrt().tolist()
