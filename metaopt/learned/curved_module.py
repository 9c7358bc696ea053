"""What m1 (the update network) sees of the curvature of a module that is no chain of layers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.meta_optimizer import MetaOptimizer, StepInput
from metaopt.learned.module_layout import ModuleLayout, layout_of
from metaopt.learned.module_pass import ModulePass, SeenModule
from metaopt.learned.observation import Observation, flatten
from metaopt.learned.place import explained
from metaopt.learned.update import RuleState, UpdateRule
from metaopt.output_loss import in_columns

MOST_PARAMETERS = 2**18
MOST_LAYERS = 64
PASSES, DIRECTIONS = 15, 5  # of a step, and for each layer: about how many passes it takes
MOST_WORK = 1e10  # products of a step; some seconds on a core
ALIKE = 0.9  # cosine of the gradient and what the output explains of it
OTHER = 0.05  # of an output, for one that is not the same again
ADJOINT = 1e-6  # of a product, for derivatives that fit each other


@final
class CurvedModule:
    """A module whose curvature is seen; without one, gradients alone are seen.

    The module is called again in each step that sees a full batch. So it must give the same again,
    and torch must know its second derivatives. Where that does not hold, gradients alone are seen
    from then on, with a warning.

    Args:
        module: the module; None where gradients alone are seen.
        reason: why they are.

    Attributes:
        steps: how many steps saw the curvature, and how many did not.
    """

    def __init__(self, module: SeenModule | None = None, reason: str = "") -> None:
        self.module, self.reason, self.checked = module, reason, False
        self.steps = [0, 0]

    @property
    def layout(self) -> ModuleLayout | None:
        """The parameters as layers; None where there is no module."""
        return None if self.module is None else self.module.layout

    def observed(
        self, loose: Observation, now: StepInput, seen: ForwardRecord | None
    ) -> Observation:
        """Return what is seen, with the curvature where the loss is known.

        Args:
            loose: what is seen of gradients alone.
            now: what the step is made from.
            seen: the forward pass that was differentiated.
        """
        loose = replace(
            loose,
            as_given=(now.parameters, loose.x),
            given_gradients=now.gradients,
            rate=now.rate * now.trust,
            absent=now.absent,
            module=self.layout,
        )
        if self.module is None or self.reason or now.loss is None or seen is None:
            return loose
        if seen.replicas:
            self._give_up("each process sees its own part of the batch")
            return loose
        try:
            found = self.module.passed(seen, now.parameters)
            curved_one = replace(loose, loss=now.loss, module_pass=found)
            reason = self._obstacle(curved_one, found, seen)
        except Exception as error:  # whatever the forward of a user does in a second call
            reason = _in_words(error)
        if reason:
            self._give_up(reason)
            return loose
        return curved_one

    def proposed(
        self, update: UpdateRule, observed: Observation, state: RuleState
    ) -> tuple[list[Tensor], RuleState]:
        """Return what m1 proposes, and its next state.

        Args:
            update: m1.
            observed: what it sees; see :meth:`observed`.
            state: of m1.
        """
        if observed.module_pass is None:
            self.steps[1] += 1
            return update.propose(observed, state)
        try:
            found = update.propose(observed, state)
        except Exception as error:  # whatever the forward of a user does in a further call
            self._give_up(_in_words(error))
            return self.proposed(update, replace(observed, loss=None, module_pass=None), state)
        self.steps[0] += 1
        return found

    def _obstacle(self, observed: Observation, found: ModulePass, seen: ForwardRecord) -> str:
        """Look once whether outputs come again, and whether derivatives fit what is known.

        Returns:
            Why the curvature cannot be seen; empty where it can.
        """
        output = seen.output
        if self.checked or output is None:
            return ""
        self.checked = True
        passes = PASSES + DIRECTIONS * len(found.layers)
        if (work := found.work * passes) > MOST_WORK:
            return f"a step would take {work:.0e} products on this batch, more than {MOST_WORK:.0e}"
        before = in_columns(output).double()
        if not (found.outputs - before).norm() <= OTHER * before.norm():
            return "its output is not the same again, as with dropout"
        signs = torch.Generator().manual_seed(0)
        directions = [
            torch.randn(1, *own.augmented().shape, generator=signs, dtype=torch.float64)
            for own in found.layers
        ]
        directions = [own.to(found.outputs.device) for own in directions]
        u = torch.randn(found.outputs.shape, generator=signs, dtype=torch.float64).to(before)
        along = (found.tangents(directions) * u).sum(dim=(-2, -1))
        pairs = zip(found.gradients(u), directions, strict=True)
        expected = torch.stack([(g * d[0]).sum() for g, d in pairs])
        if not (along - expected).norm() <= ADJOINT * expected.norm():
            return "an operation of it cannot be differentiated twice"
        loss, slopes = observed.loss, observed.given_gradients
        if loss is None or loss.output_gradient is None or slopes is None:
            return ""
        told = explained(observed, found, flatten(slopes).double(), loss.output_gradient)
        if told.cosine < ALIKE:
            return "its loss is not of one output alone"
        return ""

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        warnings.warn(
            f"m1 sees gradients alone of this model from now on, as {reason}: steps will be slower",
            stacklevel=2,
        )

    def __str__(self) -> str:
        if self.module is None or self.reason:
            return "m1 sees gradients alone" + (f" ({self.reason})" if self.reason else "")
        count = len(self.module.layout.matrices)
        seen, others = self.steps
        return (
            f"m1 sees the curvature of {count} matrices on full batches; it did in {seen} steps, "
            f"and saw gradients alone in {others}"
        )


def _in_words(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"


def curved(model: nn.Module, names: Sequence[str], meta: MetaOptimizer) -> CurvedModule:
    """Return what is seen of the curvature of a module.

    Args:
        model: the module, which is no chain of layers.
        names: of the parameters that are stepped.
        meta: the meta-optimizer; one whose m1 does not look at losses sees gradients alone.
    """
    if not meta.update.sees_losses:
        return CurvedModule()
    layout = layout_of(model, names)
    size = sum(shape.numel() for shape in layout.shapes)
    if size > MOST_PARAMETERS:
        return CurvedModule(reason=f"{size:,} parameters are more than {MOST_PARAMETERS:,}")
    if len(layout.matrices) > MOST_LAYERS:
        count = len(layout.matrices)
        return CurvedModule(reason=f"{count} layers are more than {MOST_LAYERS}")
    return CurvedModule(SeenModule(model, layout))
