"""Positive rescaling of the units of a site: d = exp(t) into a unit, 1/d out of it.

Exact for every input where the site is homogeneous, because all that lies behind the scale
commutes with it. Across a batch norm the scale goes into its weight and bias, since it would
undo a scale of the layer before; its running statistics stay.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.symmetry.exponential import MAX_ELEMENT
from metaopt.symmetry.site import ModuleSite


def rescaled(
    parameters: Mapping[str, Tensor], site: ModuleSite, log_scale: Tensor
) -> dict[str, Tensor]:
    """The parameters that change, as new tensors, differentiable in ``log_scale``.

    Arithmetic is float64; each tensor keeps its dtype. For ``torch.func.functional_call``.

    Args:
        parameters: at least those of ``site.multiplied`` and ``site.divided``, by name.
        log_scale: t, ``(width,)``.

    Raises:
        UserError: if the site does not allow it, a parameter is missing, or t has another shape.
    """
    if not site.homogeneous:
        raise UserError(
            f"expected a site that commutes with scales, got {site.incoming} -> {site.outgoing}: "
            f"use the pre_activation action"
        )
    if log_scale.shape != (site.width,):
        raise UserError(
            f"expected a log_scale of shape {(site.width,)}, got {tuple(log_scale.shape)}: "
            f"give one number a unit"
        )
    missing = [name for name in (*site.multiplied, site.divided) if name not in parameters]
    if missing:
        raise UserError(
            f"expected parameters of the site, got none called {', '.join(missing)}: "
            f"pass dict(model.named_parameters())"
        )
    changed = {}
    for name in site.multiplied:
        old = parameters[name]
        units = by_unit(site, old.double())
        scale = log_scale.to(old.device, torch.float64).exp()
        changed[name] = (units * scale.unsqueeze(-1)).reshape(old.shape).to(old.dtype)
    old = parameters[site.divided]
    units = by_input(site, old.double())
    shape = (units.shape[0], 1, units.shape[2], 1)
    scale = log_scale.to(old.device, torch.float64).exp().reshape(shape)
    changed[site.divided] = (units / scale).reshape(old.shape).to(old.dtype)
    return changed


def log_scale_gradient(products: Mapping[str, Tensor], site: ModuleSite) -> Tensor:
    """dJ/dt at t = 0, ``(width,)``, from dJ/dw * w of each parameter, by name."""
    into = [by_unit(site, products[name]).sum(dim=-1) for name in site.multiplied]
    out_of = by_input(site, products[site.divided]).sum(dim=(1, 3)).flatten()
    return torch.stack(into).sum(dim=0) - out_of


def by_unit(site: ModuleSite, multiplied: Tensor) -> Tensor:
    """A parameter that takes the scale, ``(width, -1)``: a unit's weights, or block of a norm."""
    return multiplied.reshape(site.width, -1)


def by_input(site: ModuleSite, divided: Tensor) -> Tensor:
    """The weight that is divided, ``(groups, out / groups, width / groups, -1)``."""
    shape = (site.groups, divided.shape[0] // site.groups, site.width // site.groups, -1)
    return divided.reshape(shape)


@torch.no_grad()
def rescale(model: nn.Module, site: ModuleSite, log_scale: Tensor) -> None:
    """Multiply each unit's incoming weights by exp(t), and divide what the next layer makes of it.

    Works in place, after all checks.

    Raises:
        UserError: as :func:`rescaled`, for |t| above 32, and if a weight would overflow.

    >>> from metaopt.symmetry.finders import find_sites
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> x = torch.linspace(-1, 1, 6).reshape(2, 3)
    >>> before = model(x)
    >>> rescale(model, find_sites(model).found[0], torch.tensor([0.5, -2.0]))
    >>> torch.allclose(model(x), before, atol=1e-5)
    True
    """
    parameters = {name: model.get_parameter(name) for name in (*site.multiplied, site.divided)}
    changed = rescaled(parameters, site, log_scale)
    if not (log_scale.abs() <= MAX_ELEMENT).all():
        raise UserError(
            f"expected entries of log_scale of at most {MAX_ELEMENT:g} in size, "
            f"got {log_scale.abs().max().item():g}: take a smaller step"
        )
    for name, tensor in changed.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"expected weights that stay finite, got others in {name}: take a smaller step"
            )
    for name, tensor in changed.items():
        parameters[name].copy_(tensor)
