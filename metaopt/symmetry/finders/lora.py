"""Sites of low-rank pairs: B A keeps what it is under A <- g A, B <- B g^-1, for any g of GL(r).

The weights that the pair is added to stay, whether they are frozen or not. So does the scale that
an adapter is multiplied by, such as alpha / sqrt(r). A pair that was merged into the weights is
left out: to move it would change what unmerging takes away.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from metaopt.symmetry.activations import Identity
from metaopt.symmetry.finders.network import Candidate, Network, of_known_library
from metaopt.symmetry.site import LeftOut, MatrixView, Site

LORA = "low-rank pairs"
PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"), ("lora_a", "lora_b"))
"""What the attributes of a module are called that hold A and B."""


def low_rank(network: Network) -> Iterator[Candidate | LeftOut]:
    """Propose GL(r) between the two matrices of low-rank adapters.

    The adapters are those of peft at Linear, convolutional and Embedding layers, each by its name,
    and pairs of parameters or layers that a module calls ``lora_A`` and ``lora_B``.

    Args:
        network: the network.
    """
    for path, module in network.modules.items():
        for own_a, own_b in PAIRS:
            a, b = (getattr(module, own, None) for own in (own_a, own_b))
            for adapter, down, up in _adapters(a, b):
                candidate = _pair(network, path, adapter, down, up, of_known_library(module))
                if candidate is None:
                    continue
                if _merged(module):
                    names = candidate.alternatives[0].layers
                    yield LeftOut(names, f"the adapter of {path} is merged: unmerge it first")
                else:
                    yield candidate


def _merged(module: nn.Module) -> bool:
    merged = getattr(module, "merged", False)
    return bool(merged)


def _adapters(a: object, b: object) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, A and B of each adapter that two attributes of a module hold."""
    if isinstance(a, nn.ModuleDict | nn.ParameterDict) and isinstance(b, type(a)):
        for name in a:
            if name in b:
                weights = _weight(a[name]), _weight(b[name])
                if weights[0] is not None and weights[1] is not None:
                    yield name, weights[0], weights[1]
    else:
        down, up = _weight(a), _weight(b)
        if down is not None and up is not None:
            yield "", down, up


def _weight(held: object) -> Tensor | None:
    """Return a parameter, or that of a layer without bias; None for anything else."""
    if isinstance(held, nn.Parameter):
        return held
    if isinstance(held, nn.Module):
        weight = held._parameters.get("weight")
        return weight if isinstance(weight, Tensor) else None
    return None


def _pair(
    network: Network, path: str, adapter: str, down: Tensor, up: Tensor, known: bool
) -> Candidate | None:
    """Return the candidate of two matrices; both layouts where the shapes allow both."""
    names = network.name_of(down), network.name_of(up)
    if names[0] is None or names[1] is None or down.dim() < 2 or up.dim() < 2:
        return None
    layers = (names[0].removesuffix(".weight"), names[1].removesuffix(".weight"))
    sites = []
    if down.shape[0] == up.shape[1]:  # A (r, inputs), B (outputs, r)
        sites.append((down.shape[0], _rows(names[0], down, 0), _columns(names[1], up, 1)))
    if down.dim() == up.dim() == 2 and down.shape[1] == up.shape[0] and not (sites and known):
        sites.append((down.shape[1], _rows(names[0], down, 1), _columns(names[1], up, 0)))
    alternatives = tuple(
        Site(
            name=f"{path} {adapter}".strip(),
            incoming=(into,),
            outgoing=(out_of,),
            between=Identity(),
            group="GL",
            width=int(rank),
            layers=layers,
            plain=True,
            homogeneous=True,
            kind=LORA,
        )
        for rank, into, out_of in sites
    )
    return Candidate(alternatives, known) if alternatives else None


def _rows(name: str, tensor: Tensor, units: int) -> MatrixView:
    """Return the view whose rows are the units, which one dimension counts."""
    dims = tensor.dim()
    rest = tuple(place for place in range(dims) if place != units)
    return MatrixView(name, (units,), rest, tuple(tensor.shape), dims)


def _columns(name: str, tensor: Tensor, units: int) -> MatrixView:
    """Return the view whose columns are the units, which one dimension counts."""
    dims = tensor.dim()
    rest = tuple(place for place in range(dims) if place != units)
    return MatrixView(name, rest, (units,), tuple(tensor.shape), dims)
