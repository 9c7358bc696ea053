"""Find the sites of an ordinary module, and say why others are left out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from metaopt.errors import UserError
from metaopt.symmetry.finders.trace import LAYERS, trace
from metaopt.symmetry.finders.walk import walk
from metaopt.symmetry.site import LeftOut, ModuleSite, Sites


def find_sites(model: nn.Module, sites: Sequence[tuple[str, str]] | None = None) -> Sites:
    """All pairs of layers between which a group can act, and why others are left out.

    The forward is read as it runs with its optional arguments at their defaults, in training and
    in evaluation mode; a site must be one in both. Register forward hooks afterwards: a layer
    with a hook is left out. The model is not changed.

    Args:
        sites: keep only these (incoming, outgoing).

    Raises:
        UserError: if one of ``sites`` was not found.

    >>> layers = nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
    >>> print(find_sites(nn.Sequential(*layers)).report())
    Found: 2
      0 -> 2: 4 units, Tanh between
        no rescaling: Tanh is not positively homogeneous
        no post_activation: it is one-to-one, but has no inverse on the real line
        pre_activation: exact for a batch of at most 5 samples
      2 -> 4: 4 units, ReLU between
        rescaling: exact for all data
        pre_activation: exact for a batch of at most 5 samples
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"expected an nn.Module, got {type(model).__name__}: give the model itself")
    by_mode = [_in_mode(model, training) for training in (True, False)]
    train, evaluation = by_mode
    left_out = [out for mode in by_mode for out in mode.left_out]
    for one, other, mode in ((train, evaluation, "training"), (evaluation, train, "evaluation")):
        for site in one.found:
            explained = any(set(site.pair) <= set(out.names) for out in left_out)
            if site not in other.found and not explained:
                left_out.append(LeftOut(site.pair, f"they are such a site only in {mode} mode"))
    found = tuple(site for site in evaluation.found if site in train.found)
    everything = Sites(found, tuple(dict.fromkeys(left_out)))
    return everything if sites is None else _chosen(model, everything, sites)


def _chosen(model: nn.Module, everything: Sites, sites: Sequence[tuple[str, str]]) -> Sites:
    known = {site.pair: site for site in everything.found}
    first_names = {id(module): name for name, module in model.named_modules()}
    first_name = {
        name: first_names[id(module)]
        for name, module in model.named_modules(remove_duplicate=False)
    }
    pairs = []
    for given in sites:
        if not isinstance(given, list | tuple) or [type(name) for name in given] != [str, str]:
            raise UserError(f"expected pairs of names, got {given!r}: give (incoming, outgoing)")
        pair = tuple(first_name.get(name, name) for name in given)
        pairs.append(pair)
        if pair not in known:
            choices = " or ".join(str(pair) for pair in known) or "other layers; none has a site"
            raise UserError(
                f"expected sites that were found, got {pair}, where "
                f"{_why_not(model, everything, pair)}: name {choices}"
            )
    others = [
        LeftOut(pair, "it is not among the given sites") for pair in known if pair not in pairs
    ]
    kept = tuple(site for pair, site in known.items() if pair in pairs)
    return Sites(kept, (*everything.left_out, *others))


def _why_not(model: nn.Module, everything: Sites, pair: tuple[str, ...]) -> str:
    names = _layer_names(model)
    for name in pair:
        if name not in names:
            return f"the model has no layer called {name}"
    about = [
        out
        for out in everything.left_out
        if set(pair) <= set(out.names) or out.names in ((pair[0],), (pair[1],))
    ]
    if about:  # best what was said of the incoming layer
        return min(about, key=lambda out: out.names[0] != pair[0]).reason
    return f"{pair[1]} does not consume the output of {pair[0]}"


def _in_mode(model: nn.Module, training: bool) -> Sites:
    traced = trace(model, training)
    if isinstance(traced, str):
        return Sites((), (LeftOut(_layer_names(model), traced),))
    ends = [walk(traced, node) for node in traced.layers()]
    called = {str(node.target) for node in traced.layers()}
    left_out = [end for end in ends if isinstance(end, LeftOut)]
    for name in _layer_names(model):
        if name in traced.opaque:
            left_out.append(
                LeftOut((name,), f"it lies inside {traced.opaque[name]}, which is not traced")
            )
        elif name and name not in called:
            left_out.append(LeftOut((name,), "the forward does not call it"))
    return Sites(tuple(end for end in ends if isinstance(end, ModuleSite)), tuple(left_out))


def _layer_names(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, module in model.named_modules() if isinstance(module, LAYERS))
