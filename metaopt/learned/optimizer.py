"""A trained meta-optimizer as an ordinary ``torch.optim.Optimizer``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metaopt.chain import LayerChain
from metaopt.errors import UserError
from metaopt.learned.checkpoint import load_meta_optimizer
from metaopt.learned.meta_optimizer import MetaOptimizer, State
from metaopt.symmetry import LayerInput, Teleportation


@runtime_checkable
class ChainModel(Protocol):
    """A module that says how it is a chain of layers and what its input is."""

    chain: LayerChain
    x: Tensor

    def parameters(self) -> Any: ...


def check_chain_model(model: nn.Module) -> ChainModel:
    """The model, as one that has a chain.

    Raises:
        UserError: if it has none.
    """
    if not isinstance(model, ChainModel):
        raise UserError(
            f"expected a module with a chain of layers and its input (attributes `chain` and "
            f"`x`), got {type(model).__name__}: use a problem of metaopt.problems"
        )
    return model


class LearnedOptimizer(torch.optim.Optimizer):
    r"""Steps a network with a learned optimizer: :math:`w \leftarrow g_t \cdot (w + f_t)`.

    Args:
        model: a module with a ``chain`` and its input ``x``, such as the problems of
            ``metaopt.problems``; its parameters are the chain's, in order.
        optimizer: the name of a shipped optimizer, the path of a checkpoint, or a
            :class:`MetaOptimizer`.

    Example:
        >>> import metaopt
        >>> problem = metaopt.problems.RegressionFamily().sample([0, 1])
        >>> optimizer = metaopt.LearnedOptimizer(problem, "lstm_update_tele")
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     problem().sum().backward()
        ...     optimizer.step()
    """

    def __init__(self, model: nn.Module, optimizer: str | Path | MetaOptimizer) -> None:
        network = check_chain_model(model)
        self.meta = (
            optimizer if isinstance(optimizer, MetaOptimizer) else load_meta_optimizer(optimizer)
        )
        super().__init__(list(network.parameters()), {})
        self.chain = network.chain
        self.layer_input = LayerInput(network.x)
        self.teleportation: Teleportation | None = None

    @property
    def learned_state(self) -> State:
        """The LSTM states. They live in ``state`` and so in ``state_dict``."""
        kept: dict[Any, Any] = self.state  # keys that are no parameters pass through state_dict
        if "learned" not in kept:
            kept["learned"] = self.meta.init_state(self.chain, self._parameters())
        state: State = kept["learned"]
        return state

    @learned_state.setter
    def learned_state(self, state: State) -> None:
        kept: dict[Any, Any] = self.state
        kept["learned"] = state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from the gradients that ``backward`` left; a closure is optional."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = self._parameters()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        advanced = self.meta.advance(
            self.chain, parameters, gradients, self.layer_input, self.learned_state
        )
        for parameter, value in zip(parameters, advanced.parameters, strict=True):
            parameter.copy_(value)
        self.learned_state = advanced.state
        self.teleportation = advanced.teleportation
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does; the LSTM states must be of this meta-optimizer and this model.

        Raises:
            UserError: if they are of another one.
        """
        expected = _shapes(self.meta.init_state(self.chain, self._parameters()))
        loaded = state_dict.get("state", {}).get("learned")
        if loaded is not None and _shapes(loaded) != expected:
            raise UserError(
                f"expected LSTM states of shapes {expected}, got {_shapes(loaded)}: load a state "
                f"of the same optimizer on a model of the same size"
            )
        super().load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only the chain's own parameters can be stepped.

        Raises:
            UserError: for a second group.
        """
        if self.param_groups:
            raise UserError(
                "expected the parameters of the chain alone, got another group: make a second "
                "optimizer for it"
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """What torch keeps, and m1, m2 and the chain, which it would lose."""
        own = ("meta", "chain", "layer_input", "teleportation")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def _shapes(state: State) -> dict[str, list[tuple[int, ...]]]:
    return {name: [tuple(tensor.shape) for tensor in tensors] for name, tensors in state.items()}
