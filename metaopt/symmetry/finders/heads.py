"""Sites of attention: values with outputs, and queries with keys, a group element for each head.

With A the weights of attention, a head computes W_O A (X W_V^T + b_V) and the scores
(X W_Q^T + b_Q)(X W_K^T + b_K)^T. So g W_V with W_O g^-1 keeps the output, and g W_Q with g^-T W_K
keeps the scores. Under a rotary embedding R, of which the scores have a factor R_i^T R_j between, g
has to commute with all R: it scales and turns each plane that R turns.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from metaopt.symmetry.activations import Identity
from metaopt.symmetry.finders.attention import Attention, attentions
from metaopt.symmetry.finders.network import Candidate, Network
from metaopt.symmetry.finders.projection import Projection
from metaopt.symmetry.site import LeftOut, Site

VALUES, QUERIES = "values and outputs", "queries and keys"


def values_outputs(network: Network) -> Iterator[Candidate | LeftOut]:
    """Propose GL(d_head) of the values of each head, whose inverse the output layer takes.

    Args:
        network: the network.
    """
    for name, readings in _by_module(network).items():
        sites, known = [], False
        for attention in readings:
            values, output = attention.values, attention.output
            if values is None or output is None:
                continue
            known = attention.known
            site = Site(
                name=f"{name} V-O" if name else "V-O",
                incoming=(values.rows(_other(network, values)),),
                outgoing=output.columns(_other(network, output)),
                between=Identity(),
                group="GL",
                width=values.width,
                layers=(values.layer, output.layer),
                plain=True,
                homogeneous=True,
                kind=VALUES,
            )
            sites.append(site)
        if sites:
            yield Candidate(tuple(sites), known)
    yield from (found for found in attentions(network) if isinstance(found, LeftOut))


def queries_keys(network: Network) -> Iterator[Candidate | LeftOut]:
    """Propose groups of the queries of each head, whose inverse transpose the keys take.

    Args:
        network: the network.
    """
    for readings in _by_module(network).values():
        sites: list[Site] = []
        known = False
        for attention in readings:
            queries, keys = attention.queries, attention.keys
            if queries is None or keys is None:
                continue
            if attention.normalised:
                yield LeftOut((queries.layer, keys.layer), "queries or keys are normalised")
                break
            known = attention.known and attention.rotated is not None
            sites += _alternatives(network, attention, queries, keys)
        if sites:
            yield Candidate(tuple(sites), known)


def _by_module(network: Network) -> dict[str, list[Attention]]:
    """Return the readings of each attention layer by its name."""
    found: dict[str, list[Attention]] = {}
    for attention in attentions(network):
        if isinstance(attention, Attention):
            found.setdefault(attention.name, []).append(attention)
    return found


def _alternatives(
    network: Network, attention: Attention, queries: Projection, keys: Projection
) -> Iterator[Site]:
    """Yield the sites that may be right; the first is what the module's config says."""
    width = queries.width
    rotated = attention.rotated
    ways: list[tuple[tuple[int, int], ...]] = [()]
    turned = rotated or width
    if rotated != 0:
        ways += [_halves(turned), _neighbours(turned)]
    if network.x is None and rotated:  # nothing will be verified
        ways = [_neighbours(turned) if attention.interleaved else _halves(turned)]
    for planes in ways:
        free = not planes
        yield Site(
            name=f"{attention.name} Q-K" if attention.name else "Q-K",
            incoming=(queries.rows(_other(network, queries)),),
            outgoing=keys.columns(_other(network, keys)),
            between=Identity() if free else None,
            group="GL" if free else "plane_rotations",
            width=width,
            layers=(queries.layer, keys.layer),
            plain=free,
            homogeneous=free,
            kind=QUERIES,
            planes=planes,
        )


def _halves(turned: int) -> tuple[tuple[int, int], ...]:
    return tuple((i, i + turned // 2) for i in range(turned // 2))


def _neighbours(turned: int) -> tuple[tuple[int, int], ...]:
    return tuple((2 * i, 2 * i + 1) for i in range(turned // 2))


def _other(network: Network, projection: Projection) -> int:
    """Return the size of the dimension of a weight that does not hold the features."""
    weight: nn.Parameter = network.model.get_parameter(projection.weight)
    return int(weight.shape[0 if projection.features_last else 1])
