"""Find the sites of an ordinary module, and say why other layers are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metaopt.errors import UserError
from metaopt.registry import Registry
from metaopt.symmetry.finders.chain import chain_of
from metaopt.symmetry.finders.sites import Sites, shorten
from metaopt.symmetry.finders.trace import LAYERS, Trace, trace
from metaopt.symmetry.finders.walk import walk
from metaopt.symmetry.site import LeftOut, Site
from metaopt.wrappers import unwrapped


@dataclass(frozen=True)
class Findings:
    """What one finder found in one trace of a model.

    Attributes:
        found: the sites, in the order of the data flow.
        left_out: layers that it looked at and left out, with the reasons.
    """

    found: Sequence[Site]
    left_out: Sequence[LeftOut] = ()


Finder = Callable[[Trace], Findings]
"""A function from the trace of a module, in one mode, to the sites of one kind."""


FINDERS: Registry[Finder] = Registry("finder")
"""All finders by name; :func:`find_sites` runs them in order."""


@FINDERS.register("between_layers")
def between_layers(trace: Trace) -> Findings:
    """Find sites between two Linear or Conv2d layers, of which the second alone uses the first.

    They are those of chains, of convolutions with batch norms and pools, and of linear pairs with
    nothing between.

    Args:
        trace: the data flow of the module.
    """
    ends = [walk(trace, node) for node in trace.layers()]
    return Findings(
        [end for end in ends if isinstance(end, Site)],
        [end for end in ends if isinstance(end, LeftOut)],
    )


def find_sites(model: nn.Module, sites: Sequence[tuple[str, str]] | None = None) -> Sites:
    """Find all sites of a model where a group can act, and say why other layers are left out.

    The forward pass is read with its optional arguments at their defaults, in training and in
    evaluation mode. A site must be one in both modes. Register forward hooks afterwards, since a
    layer with a hook is left out. The model is not changed. The names are those of the module
    inside wrappers such as DistributedDataParallel and what ``torch.compile`` returns.

    Args:
        model: any module.
        sites: pairs (incoming layer, outgoing layer) to keep, instead of all.

    Raises:
        UserError: if one of ``sites`` was not found, or if a finder fails.

    Example:
        >>> layers = nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
        >>> print(find_sites(nn.Sequential(*layers)).report())
        Found: 2
          0 -> 2: 4 units, Tanh between
            pre_activation: exact for a batch of at most 5 samples
            no post_activation: Tanh has no inverse on the real line
            no linear: Tanh lies between the two layers
            no rescaling: Tanh is not positively homogeneous
          2 -> 4: 4 units, ReLU between
            rescaling: exact for all data
            pre_activation: exact for a batch of at most 5 samples
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"expected an nn.Module, got {type(model).__name__}: give the model itself")
    model = unwrapped(model)
    traces = [trace(model, training) for training in (True, False)]
    train, evaluation = (_in_mode(model, traced) for traced in traces)
    left_out = [*train.left_out, *evaluation.left_out]
    for one, other, mode in ((train, evaluation, "training"), (evaluation, train, "evaluation")):
        for site in one.found:
            explained = any(set(site.layers) <= set(out.names) for out in left_out)
            if site not in other.found and not explained:
                left_out.append(LeftOut(site.layers, f"they are such a site only in {mode} mode"))
    found = tuple(site for site in evaluation.found if site in train.found)
    chain = chain_of(traces)
    reasons = tuple(o for o in dict.fromkeys(left_out) if not _found_by_another(o, found))
    everything = Sites(found, reasons, chain)
    return everything if sites is None else choose_sites(model, everything, sites)


def choose_sites(model: nn.Module, everything: Sites, sites: Sequence[tuple[str, str]]) -> Sites:
    """Keep only the sites between given pairs of layers.

    Args:
        model: the module.
        everything: what :func:`find_sites` found in it.
        sites: pairs (incoming layer, outgoing layer) of names; a module that has several names may
            be called by any.

    Raises:
        UserError: if one of them was not found; the message says why.
    """
    known = dict.fromkeys(site.layers for site in everything.found)  # some may be the same
    first_names = {id(module): name for name, module in model.named_modules()}
    first_name = {
        name: first_names[id(module)]
        for name, module in model.named_modules(remove_duplicate=False)
    }
    pairs = []
    if isinstance(sites, str) or not isinstance(sites, Iterable):
        raise UserError(f"expected sites in a list, got {sites!r}: give [(incoming, outgoing)]")
    for given in sites:
        if not isinstance(given, list | tuple) or [type(name) for name in given] != [str, str]:
            raise UserError(f"expected pairs of names, got {given!r}: give (incoming, outgoing)")
        pair = tuple(first_name.get(name, name) for name in given)
        pairs.append(pair)
        if pair not in known:
            why = shorten(_why_not(model, everything, pair), 120)
            raise UserError(
                f"expected sites that were found, got {pair}, where {why}: name {_choices(known)}"
            )
    others = [
        LeftOut(site.layers, "it is not among the given sites")
        for site in everything.found
        if site.layers not in pairs
    ]
    kept = tuple(site for site in everything.found if site.layers in pairs)
    return Sites(kept, (*everything.left_out, *others), "sites were given")


def _choices(known: Iterable[tuple[str, str]]) -> str:
    """Return as many pairs as fit into a line, at least one where there are any."""
    names = [str(pair) for pair in known]
    if not names:
        return "other layers; none has a site"
    shown = names[:1]
    while len(shown) < len(names) and len(" or ".join(names[: len(shown) + 1])) <= 60:
        shown = names[: len(shown) + 1]
    rest = len(names) - len(shown)
    return " or ".join(shown) + (f", or one of {rest} more" if rest else "")


def _why_not(model: nn.Module, everything: Sites, pair: tuple[str, ...]) -> str:
    names = set(_layer_names(model))  # and what a finder calls by the names of parameters
    names |= {name for site in everything.found for name in site.layers}
    names |= {name for out in everything.left_out for name in out.names}
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


def _in_mode(model: nn.Module, traced: Trace | str) -> Findings:
    if isinstance(traced, str):
        return Findings((), [LeftOut(_layer_names(model), traced)])
    findings = [_ask(name, finder, traced) for name, finder in FINDERS.items()]
    called = {str(node.target) for node in traced.layers()}
    left_out = [out for finding in findings for out in finding.left_out]
    for name in _layer_names(model):
        if name in traced.opaque:
            left_out.append(
                LeftOut((name,), f"it lies inside {traced.opaque[name]}, which is not traced")
            )
        elif name and name not in called:
            left_out.append(LeftOut((name,), "the forward does not call it"))
    found = [site for finding in findings for site in finding.found]
    return Findings(_in_data_flow(traced, found), left_out)


def _ask(name: str, finder: Finder, traced: Trace) -> Findings:
    """Return what a finder found, checked, as any function may be registered."""
    words = f"expected the finder {name!r} to give Findings of sites that the model has"
    advice = "mend it, or take it out of metaopt.symmetry.FINDERS"
    try:
        findings = finder(traced)
        found, left_out = tuple(findings.found), tuple(findings.left_out)
    except Exception as error:  # whatever the code of others raises
        got = shorten(" ".join(f"{type(error).__name__}: {error}".split()), 100)
        raise UserError(f"{words}, got {got}: {advice}") from error
    shapes = {
        name: torch.empty(parameter.shape, device="meta")
        for name, parameter in traced.model.named_parameters(remove_duplicate=False)
        if not is_lazy(parameter)
    }
    for item, kind in (*((site, Site) for site in found), *((out, LeftOut) for out in left_out)):
        if not isinstance(item, kind):
            raise UserError(f"{words}, got a {type(item).__name__}: {advice}")
        if isinstance(item, Site) and (why := _misfit(item, shapes)):
            raise UserError(f"{words}, got {item.name}, where {why}: {advice}")
    return Findings(found, left_out)


def _misfit(site: Site, parameters: Mapping[str, Tensor]) -> str | None:
    """Return why a site does not fit the parameters of a model, or None."""
    for name in site.parameters:
        if name not in parameters:
            return f"the model has no parameter {name}"
    for views, dimension in ((site.incoming, -2), (site.outgoing, -1)):
        for view in views:
            try:
                units = view.read(parameters).shape[dimension]
            except (RuntimeError, IndexError, ValueError):
                return f"the view of {view.parameter} does not fit its shape"
            if units != site.width:
                return f"{view.parameter} has {units} units, not {site.width}"
    return None


def _in_data_flow(traced: Trace, found: Sequence[Site]) -> list[Site]:
    """Sort sites by where the data flow first comes to what makes their features."""
    nodes = [node for node in traced.graph.nodes if node.op in ("call_module", "get_attr")]
    places = {str(node.target): place for place, node in reversed(list(enumerate(nodes)))}

    def place(site: Site) -> int:
        parameter = site.incoming[0].parameter
        names = (site.layers[0], parameter, parameter.rpartition(".")[0])
        return min((places[name] for name in names if name in places), default=len(nodes))

    return sorted(found, key=place)


def _found_by_another(out: LeftOut, found: Sequence[Site]) -> bool:
    """Whether a site lies between the layers that a finder left out."""
    return any(out.names[:1] == site.layers[:1] and site.layers[1] in out.names for site in found)


def _layer_names(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, module in model.named_modules() if isinstance(module, LAYERS))
