"""LSTM(update) training in JAX, the same mathematics as here: heads "plain" and "scaled_gradient".

One jitted function is the meta-gradient of a window, a ``lax.scan`` over its steps. Written to be
fast in JAX: an LSTM layer is one matrix product, and a step can be recomputed in its backward
pass (``jax.checkpoint``) instead of keeping what it needs, which saves more time than it costs.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.tasks import Regression

TINY = 1e-30
Weights = tuple[Array, Array]
Networks = dict[str, Array]  # by the names of the meta-parameters here


class Carry(NamedTuple):
    weights: Weights
    state: tuple[Array, ...]  # h_1, c_1, h_2, c_2, ...


def networks_of(meta: MetaOptimizer) -> Networks:
    return {name: jnp.asarray(p.detach().numpy()) for name, p in meta.named_parameters()}


def start_of(meta: MetaOptimizer, problem: Regression) -> Carry:
    parameters = list(problem.parameters())
    state = meta.init_state(problem.chain, parameters)["update"]
    first, second = (jnp.asarray(p.detach().numpy()) for p in parameters)
    return Carry((first, second), tuple(jnp.asarray(s.numpy()) for s in state))


def lstm_layer(networks: Networks, layer: int, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    named = (networks[f"update.lstm.layers.{layer}.{n}"] for n in ("weight_x", "weight_h", "bias"))
    weight_x, weight_h, bias = named
    product = jnp.concatenate((weight_x, weight_h), axis=1) @ jnp.concatenate((x, h))
    i, f, g, o = jnp.split(product + bias[:, None], 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def log_sign(values: Array, p: float = 10.0) -> Array:
    magnitude = jnp.log(jnp.maximum(jnp.abs(values), math.exp(-p))) / p
    return jnp.stack((magnitude, jnp.clip(values * math.exp(p), -1.0, 1.0)))


def square_norm(matrix: Array) -> Array:
    return jnp.sum(jnp.square(matrix), axis=(-2, -1), keepdims=True)


class Training:
    """Truncated backpropagation on one batch of two-layer problems."""

    def __init__(
        self, problem: Regression, slope: float, window: int, floor: float, recompute: bool
    ) -> None:
        self.x, self.y = jnp.asarray(problem.x.numpy()), jnp.asarray(problem.y.numpy())
        self.slope, self.window, self.floor = slope, window, floor
        self.recompute = recompute
        self.meta_gradient = jax.jit(jax.value_and_grad(self._meta_loss, has_aux=True))

    def hidden(self, first: Array) -> Array:
        return jax.nn.leaky_relu(first @ self.x, self.slope)

    def losses(self, weights: Weights) -> Array:
        first, second = weights
        return 0.5 * jnp.sum(jnp.square(self.y - second @ self.hidden(first)), axis=(-2, -1))

    def _step(self, networks: Networks, carry: Carry, _: Any) -> tuple[Carry, Array]:
        weights, state = carry
        losses, pull = jax.vjp(self.losses, weights)
        gradients = lax.stop_gradient(pull(jnp.ones_like(losses))[0])
        seen = lax.stop_gradient(weights)
        kappas = (
            square_norm(self.x) * square_norm(seen[1]),
            square_norm(self.hidden(seen[0])),
        )
        gradient = jnp.concatenate([g.reshape(-1) for g in gradients])
        scaled = jnp.concatenate(
            [(g / (k + TINY)).reshape(-1) for g, k in zip(gradients, kappas, strict=True)]
        )
        x, following = log_sign(gradient), []
        for layer in range(len(state) // 2):
            x, c = lstm_layer(networks, layer, x, *state[2 * layer : 2 * layer + 2])
            following += [x, c]
        weight, bias = networks["update.lstm.head_weight"], networks["update.lstm.head_bias"]
        plain, size = weight @ x + bias[:, None]
        step = 0.01 * plain
        step += 0.1 * jnp.tanh(10.0 * scaled * jnp.exp(jnp.minimum(4.0 * size - 1.0, 3.0)))
        parts = jnp.split(step, [weights[0].size])
        first, second = (w - p.reshape(w.shape) for w, p in zip(weights, parts, strict=True))
        return Carry((first, second), tuple(following)), losses

    def _meta_loss(self, networks: Networks, carry: Carry) -> tuple[Array, tuple[Carry, Array]]:
        """The mean of log(L + floor) after each step; with it, the carry and those losses."""
        step = partial(self._step, networks)
        if self.recompute:
            step = jax.checkpoint(step)
        carry, before = lax.scan(step, carry, None, length=self.window)
        after = jnp.concatenate((before[1:], self.losses(carry.weights)[None]))
        return jnp.mean(jnp.log(after + self.floor)), (carry, after)

    def run(self, networks: Networks, carry: Carry, steps: int) -> tuple[np.ndarray, Networks]:
        """All losses, and the meta-gradient of the first window."""
        losses, gradients = [], []
        for _ in range(steps // self.window):
            (_, (carry, after)), gradient = self.meta_gradient(networks, carry)
            losses.append(after)
            gradients.append(gradient)
        jax.block_until_ready(gradients)
        return np.concatenate([np.asarray(block) for block in losses]), gradients[0]
