"""The pass of any module at some weights, differentiated by autograd.

The second moments of what a layer is given are taken from the pass. Those of the Gauss-Newton
derivative in what it gives are estimated: a vector v with E v v^T = H is drawn at the outputs and
carried back, with H the Hessian of the loss there (Martens and Grosse, 2015, section 5, draw the
gradient of a label of the model in its place). J d is the derivative of J^T u in u, along d.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.learned.doubles import Doubles
from metaopt.learned.forward_record import ForwardRecord, differentiable
from metaopt.learned.kinks import has_kinks
from metaopt.learned.kronecker import Diagonal, Factors, LayerCurvature, decomposed, norm
from metaopt.learned.module_layout import ModuleLayout
from metaopt.learned.network_pass import ROUNDED, NetworkPass
from metaopt.output_loss import OutputLoss, in_columns
from metaopt.randomness import same_randomness
from metaopt.symmetry.chain import Layer
from metaopt.symmetry.functional import call_with, differentiable_twice, state_kept
from metaopt.symmetry.nested import mapped, tensors_in

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

EXACT = 4  # outputs; for no more of them the derivatives of all are carried back
PROBES = 4  # vectors that are carried back else
SAFETY = 2.0  # a factor of what rounding may be
SHRUNK = 0.5  # of a curvature that was estimated alone, towards the mean of its parameter
SLOW = 6  # times as slow as Linear layers convolutions are in float64
MOST_ROWS = 2**22  # entries of what a layer is given, for its second moments


@final
class SeenModule:
    """A module whose passes are differentiated.

    Args:
        model: the module.
        layout: its parameters as layers.

    Attributes:
        model, layout: as given.
        batches: whether torch.vmap knows its operations, as far as it was tried.
    """

    def __init__(self, model: nn.Module, layout: ModuleLayout) -> None:
        self.model, self.layout, self.batches = model, layout, True

    def passed(self, record: ForwardRecord, parameters: Sequence[Tensor]) -> ModulePass:
        """Return a pass.

        Args:
            record: says what the module is given.
            parameters: in the order of the layout.
        """
        doubles = [parameter.detach().double() for parameter in parameters]
        return ModulePass(self, record, self.layout.layers(doubles))


class Use(NamedTuple):
    """A call of a layer in a pass.

    Attributes:
        module: the layer.
        given: what it was given.
        made: what it gave, before anything changed it in place.
    """

    module: nn.Linear | Convolution
    given: Tensor
    made: Tensor

    def inputs(self, biased: bool) -> Tensor:
        """Return what the weight was multiplied with, ``(rows, in)``, with a 1 for the bias.

        Of many rows those of each second, third, ... sample are taken, and count for all.

        Args:
            biased: whether there is a bias.
        """
        given = self.given.detach()
        if isinstance(self.module, nn.Linear):
            rows, scale = _thinned(given.reshape(-1, given.shape[-1]), given.shape[-1])
        else:
            positions = self._batched(self.made)[:1, 0].numel()
            entries = positions * self.module.weight[0].numel()
            images, scale = _thinned(self._batched(given), entries)
            rows = self._patches(self.module, images)
        if biased:
            rows = functional.pad(rows, (0, 1), value=1.0)
        return rows.mul(scale**0.5)

    def slopes(self, of_made: Tensor) -> Tensor:
        """Return derivatives in what it gave, ``(rows, out)``.

        Args:
            of_made: the derivatives, of the shape of what it gave.
        """
        if isinstance(self.module, nn.Linear):
            return of_made.reshape(-1, of_made.shape[-1])
        return self._batched(of_made).movedim(1, -1).flatten(end_dim=-2)

    def _batched(self, images: Tensor) -> Tensor:
        return images if images.dim() == self.module.weight.dim() else images.unsqueeze(0)

    def _patches(self, module: Convolution, images: Tensor) -> Tensor:
        """What each output of a convolution sees, ``(rows, in)``: a convolution with I."""
        shape = module.weight.shape[1:]
        identity = torch.eye(shape.numel(), dtype=images.dtype, device=images.device)
        found: Tensor = module._conv_forward(images, identity.view(-1, *shape), None)
        return found.movedim(1, -1).flatten(end_dim=-2)


@final
class ModulePass(NetworkPass):
    """A pass of any module, in its own mode and in float64.

    Args:
        seen: the module.
        record: says what it is given.
        layers: the weights, in float64.
    """

    def __init__(self, seen: SeenModule, record: ForwardRecord, layers: Sequence[Layer]) -> None:
        self.seen, self.record, self.layers = seen, record, layers
        layout, model = seen.layout, seen.model
        with torch.inference_mode(False), torch.enable_grad(), differentiable_twice(model):
            values = [own.detach().clone().requires_grad_() for own in layout.parameters(layers)]
            arguments = mapped(_double, list(record.arguments))
            keywords = mapped(_double, record.keywords)
            to = torch.float64
            with (
                same_randomness(),
                state_kept(model, to),
                _watched(model, layout) as uses,
                Doubles(),
            ):
                given = call_with(model, layout.names, values, arguments, keywords, to)
            output = differentiable(given)[record.place]
            self._output = in_columns(output)
            self._values, self._uses = values, uses
            self._cotangent = torch.zeros_like(self._output).requires_grad_()
            self._adjoint = torch.autograd.grad(
                self._output, values, self._cotangent, create_graph=True, materialize_grads=True
            )
        self.outputs = self._output.detach()

    @property
    def work(self) -> int:
        """About how many products a pass takes; one of a convolution counts for several."""
        return sum(
            use.made.numel()
            * use.module.weight[0].numel()
            * (1 if isinstance(use.module, nn.Linear) else SLOW)
            for own in self._uses.values()
            for use in own
        )

    def kinked(self) -> bool:
        """See :meth:`NetworkPass.kinked`; from what autograd has seen."""
        return has_kinks(self._output)

    def at(self, layers: Sequence[Layer]) -> ModulePass:
        """See :meth:`NetworkPass.at`."""
        return ModulePass(self.seen, self.record, layers)

    def curvatures(self, loss: OutputLoss, step: int) -> Sequence[LayerCurvature]:
        """See :meth:`NetworkPass.curvatures`."""
        layout = self.seen.layout
        uses = [self._uses.get(matrix.module, []) for matrix in layout.matrices]
        alone = [self._values[place] for place in layout.others]
        made = [use.made for own in uses for use in own]
        bounds = [0]
        for own in uses:
            bounds.append(bounds[-1] + len(own))
        heights = [len(layer.weight) for layer in self.layers[: len(uses)]]
        of_outputs = [self.outputs.new_zeros(height, height) for height in heights]
        squares = [torch.zeros_like(own) for own in alone]
        probes = _probes(self.outputs, step)
        for probe in probes:
            found = torch.autograd.grad(
                self._output,
                [*made, *alone],
                loss.root(self.outputs, probe),
                retain_graph=True,
                materialize_grads=True,
            )
            for place, (own, (start, end)) in enumerate(zip(uses, pairwise(bounds), strict=True)):
                if own:
                    rows = [u.slopes(g) for u, g in zip(own, found[start:end], strict=True)]
                    g = torch.cat(rows)
                    of_outputs[place] += g.mT @ g / len(g)
            for square, slope in zip(squares, found[len(made) :], strict=True):
                square += slope.square()
        share = 1.0 if len(probes) == len(self.outputs) else 1 / len(probes)
        of_inputs = [self._moment(place, own) for place, own in enumerate(uses)]
        pairs = decomposed([share * own for own in of_outputs] + of_inputs)
        curvatures: list[LayerCurvature] = [
            Factors(s, c) for s, c in zip(pairs[: len(uses)], pairs[len(uses) :], strict=True)
        ]
        if squares:
            even = [torch.lerp(own, own.mean(), SHRUNK).reshape(-1) for own in squares]
            curvatures.append(Diagonal(share * torch.cat(even).unsqueeze(0)))
        return curvatures

    def _moment(self, place: int, uses: Sequence[Use]) -> Tensor:
        """The second moments of what a layer is given."""
        layer = self.layers[place]
        size = layer.augmented().shape[-1]
        found = layer.weight.new_zeros(size, size)
        for use in uses:
            rows = use.inputs(layer.bias is not None)
            found += rows.mT @ rows
        return found

    def tangents(self, directions: Sequence[Tensor]) -> Tensor:
        """See :meth:`NetworkPass.tangents`."""
        found = []
        for place, own in enumerate(directions):
            parts = self.seen.layout.parts(place, own)
            found.append(self._along([self._adjoint[at] for at in parts], list(parts.values())))
        return torch.cat(found)

    def pushed(self, direction: Sequence[Tensor]) -> Tensor:
        """See :meth:`NetworkPass.pushed`."""
        parts: dict[int, Tensor] = {}
        for place, own in enumerate(direction):
            parts |= self.seen.layout.parts(place, own.unsqueeze(0))
        return self._vjp([self._adjoint[at] for at in parts], [own[0] for own in parts.values()])

    def _along(self, adjoint: Sequence[Tensor], moved: Sequence[Tensor]) -> Tensor:
        """J d for directions of some parameters, ``(directions, out, samples)``."""
        if self.seen.batches:
            try:
                return self._vjp(adjoint, moved, batched=True)
            except RuntimeError:  # an operation that torch.vmap does not know; else it comes again
                self.seen.batches = False
        each = [[own[index] for own in moved] for index in range(len(moved[0]))]
        return torch.stack([self._vjp(adjoint, own) for own in each])

    def _vjp(
        self, adjoint: Sequence[Tensor], moved: Sequence[Tensor], batched: bool = False
    ) -> Tensor:
        pairs = [(a, d) for a, d in zip(adjoint, moved, strict=True) if a.requires_grad]
        if not pairs:
            lead = moved[0].shape[:1] if batched else ()
            return self.outputs.new_zeros(*lead, *self.outputs.shape)
        (found,) = torch.autograd.grad(
            [a for a, _ in pairs],
            self._cotangent,
            [d for _, d in pairs],
            retain_graph=True,
            is_grads_batched=batched,
            materialize_grads=not batched,
            allow_unused=not batched,
        )
        return found

    def gradients(self, of_output: Tensor) -> list[Tensor]:
        """See :meth:`NetworkPass.gradients`."""
        found = torch.autograd.grad(
            self._output, self._values, of_output, retain_graph=True, materialize_grads=True
        )
        return [layer.augmented() for layer in self.seen.layout.layers(found)]

    def rounding(self) -> list[Tensor]:
        """See :meth:`NetworkPass.rounding`; from ||J^T e|| of random signs e, which is ||J||_F."""
        (signs,) = _signs(self.outputs, 0, 1)
        scale = ROUNDED * SAFETY * self.outputs.shape[-1] ** 0.5
        return [scale * norm(own) for own in self.gradients(signs)]


@contextmanager
def _watched(model: nn.Module, layout: ModuleLayout) -> Iterator[dict[str, list[Use]]]:
    """Keep what the layers of a layout are given and give, inside a ``with`` block."""
    kept: dict[str, list[Use]] = {}

    def keeper(name: str) -> Any:
        def keep(module: Any, arguments: Any, keywords: Any, made: Tensor) -> Tensor:
            given = next(iter(tensors_in((arguments, keywords))))
            kept.setdefault(name, []).append(Use(module, given, made))
            return made.clone()  # what comes next may change it in place

        return keep

    handles = [
        model.get_submodule(matrix.module).register_forward_hook(
            keeper(matrix.module), with_kwargs=True
        )
        for matrix in layout.matrices
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _probes(outputs: Tensor, step: int) -> list[Tensor]:
    """Vectors v of the shape of the outputs; the sum or the mean of v v^T of a sample is I."""
    if len(outputs) > EXACT:
        return _signs(outputs, step, PROBES)
    signs = _signs(outputs[:1], step, len(outputs))
    identity = torch.eye(len(outputs), dtype=outputs.dtype, device=outputs.device)
    return [row.unsqueeze(-1) * own for row, own in zip(identity, signs, strict=True)]


def _signs(like: Tensor, seed: int, count: int) -> list[Tensor]:
    """Random signs of a shape."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *like.shape)
    drawn = torch.randint(2, shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
    return list(drawn.to(like))


def _thinned(rows: Tensor, entries: int) -> tuple[Tensor, float]:
    """Samples of which each stands for several where there are many, and for how many."""
    every = -(-len(rows) * max(entries, 1) // MOST_ROWS)
    kept = rows[:: max(every, 1)]
    return kept, len(rows) / max(len(kept), 1)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor
