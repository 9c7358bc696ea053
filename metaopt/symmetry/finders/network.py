"""A network as finders by module see it, and the table of these finders.

A finder of :data:`KINDS` proposes sites of one kind from the modules of a network. Where the
network's inputs are known, each proposal is verified by doing (:mod:`metaopt.symmetry.verify`), so
a finder may propose by names what it cannot prove.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from metaopt.registry import Registry
from metaopt.symmetry.finders.export import exported
from metaopt.symmetry.finders.record import Record, record
from metaopt.symmetry.finders.sharing import shared_parameters
from metaopt.symmetry.finders.trace import Trace, trace
from metaopt.symmetry.nested import Inputs
from metaopt.symmetry.site import LeftOut, Site


@dataclass(frozen=True)
class Candidate:
    """A proposal of a site, which may be wrong.

    Attributes:
        alternatives: sites with groups or layouts that may be right, the largest group first. The
            first that holds is taken.
        known: whether the modules are of a library that is known, so that the first alternative is
            right, as far as can be told from outside.
    """

    alternatives: tuple[Site, ...]
    known: bool = False

    @classmethod
    def of(cls, *alternatives: Site, known: bool = False) -> Candidate:
        """Return the candidate of some alternatives."""
        return cls(alternatives, known)


Proposals = Iterable[Candidate | LeftOut]
"""Candidates, and layers that were looked at and left out, with the reasons."""


class Network:
    """A module with what finders ask about it.

    Args:
        model: the module, without wrappers.
        x: what it is called with; None if that is not known.

    Attributes:
        model: the module.
        x: what it is called with, or None.
    """

    def __init__(self, model: nn.Module, x: Inputs | None = None) -> None:
        self.model, self.x = model, x
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._all_frozen = not any(p.requires_grad for p in model.parameters())

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """All modules by name, each once."""
        return dict(self.model.named_modules())

    @cached_property
    def shared(self) -> dict[int, tuple[str, ...]]:
        """The parameters that have several names; see :func:`shared_parameters`."""
        return shared_parameters(self.model)

    @cached_property
    def record(self) -> Record | None:
        """Who uses whose output in a run on the inputs; None where there are no inputs."""
        return None if self.x is None else record(self.model, self.x)

    @cached_property
    def traces(self) -> Sequence[Trace]:
        """The data flow in training and in evaluation mode, where it can be traced."""
        traced = [trace(self.model, training) for training in (True, False)]
        return [one for one in traced if isinstance(one, Trace)]

    @cached_property
    def exported(self) -> Trace | None:
        """The data flow on the inputs in evaluation mode, where a trace is not possible.

        None without inputs, and where there is a trace.
        """
        if self.x is None or len(self.traces) == 2:
            return None
        found = exported(self.model, self.x)
        return found if isinstance(found, Trace) else None

    def name_of(self, parameter: Tensor | None) -> str | None:
        """Return the first name of a parameter; None for none, and for what is no parameter."""
        return None if parameter is None else self._names.get(id(parameter))

    def obstacle(self, site: Site) -> str | None:
        """Return why the parameters of a site must stay, or None.

        Where every parameter of a model is frozen, as for inference, none of them is in the way.

        Args:
            site: the site.
        """
        for name in site.parameters:
            if name not in self._names.values():
                return f"{name} is not a parameter of the model"
            parameter = self.model.get_parameter(name)
            if not parameter.requires_grad and not self._all_frozen:
                return f"{name} is frozen (requires_grad is False)"
            if not parameter.is_floating_point():
                return f"{name} does not hold real numbers"
            if id(parameter) in self.shared and not site.group.startswith("orthogonal"):
                held = [n for n in self.shared[id(parameter)] if n != name]
                return f"{name} shares its weights with {' and '.join(held) or 'itself'}"
        return None


Kind = Callable[[Network], Proposals]
"""A function from a network to proposals of sites of one kind."""

KINDS: Registry[Kind] = Registry("kind")
"""The finders by module, by name; :func:`metaopt.symmetries` runs them in order."""


def is_dense(module: nn.Module | None) -> bool:
    """Return whether a module is exactly a Linear layer, or the Conv1D of transformers."""
    if module is None or "forward" in vars(module):
        return False
    kind = type(module)
    linear = kind is nn.Linear or kind.__name__ in ("NonDynamicallyQuantizableLinear", "Conv1D")
    return linear and "weight" in module._parameters


def features_last(module: nn.Module) -> bool:
    """Return whether a dense layer holds its weight as (inputs, outputs), as Conv1D does."""
    return not isinstance(module, nn.Linear)


def sizes(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of inputs and of outputs of a dense layer."""
    rows, columns = module.get_parameter("weight").shape
    return (rows, columns) if features_last(module) else (columns, rows)


def of_known_library(module: nn.Module) -> bool:
    """Return whether a module is of torch, transformers or peft."""
    return type(module).__module__.partition(".")[0] in ("torch", "transformers", "peft")


def children_of(network: Network, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the direct children of a module with their full names."""
    module = network.modules[path]
    before = f"{path}." if path else ""
    for name, child in module.named_children():
        yield before + name, child
