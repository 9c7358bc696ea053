"""The fused LSTM step against ``nn.LSTMCell``, finite differences, and its own contract."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

from metaopt.learned.lstm import LSTM, LSTMLayer

INPUTS, HIDDEN, LAYERS, OUTPUTS, COLUMNS, STEPS = 3, 5, 2, 4, 7, 6


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


@pytest.fixture
def lstm() -> LSTM:
    return LSTM(INPUTS, HIDDEN, LAYERS, OUTPUTS, seeded(0)).double()


@pytest.fixture
def state() -> list[Tensor]:
    return [normal(HIDDEN, COLUMNS, seed=10 + i) for i in range(2 * LAYERS)]


class Oracle(nn.Module):
    """The same stack made of ``nn.LSTMCell``, which is row-major, and ``nn.Linear``."""

    def __init__(self, lstm: LSTM) -> None:
        super().__init__()
        self.cells = nn.ModuleList()
        for layer in lstm.layers:
            cell = nn.LSTMCell(layer.weight_x.shape[1], HIDDEN, dtype=torch.float64)
            with torch.no_grad():
                cell.weight_ih.copy_(layer.weight_x)
                cell.weight_hh.copy_(layer.weight_h)
                cell.bias_ih.copy_(layer.bias)
                cell.bias_hh.zero_()
            self.cells.append(cell)
        self.head = nn.Linear(HIDDEN, OUTPUTS, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(lstm.head_weight)
            self.head.bias.copy_(lstm.head_bias)

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        row, following = x.mT, []
        for cell, h, c in zip(self.cells, state[::2], state[1::2], strict=True):
            row, c_next = cell(row, (h.mT, c.mT))
            following += [row.mT, c_next.mT]
        return self.head(row).mT, following


def through_time(net: nn.Module, state: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and final state of several steps, and gradients of a generic loss in all inputs."""
    xs = [normal(INPUTS, COLUMNS, seed=20 + t).requires_grad_() for t in range(STEPS)]
    first = [tensor.clone().requires_grad_() for tensor in state]
    outputs, current = [], first
    for x in xs:
        output, current = net(x, current)
        outputs.append(output)
    results = outputs + current
    loss = sum((normal(*r.shape, seed=40 + i) * r).sum() for i, r in enumerate(results))
    loss.backward()
    return [r.detach() for r in results], [t.grad for t in xs + first]


def test_outputs_and_all_gradients_through_time_equal_those_of_lstm_cells(lstm, state):
    oracle = Oracle(lstm)
    results, gradients = through_time(lstm, state)
    expected, expected_gradients = through_time(oracle, state)
    torch.testing.assert_close(results, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-11, atol=1e-13)
    for layer, cell in zip(lstm.layers, oracle.cells, strict=True):
        for own, theirs in (
            (layer.weight_x, cell.weight_ih),
            (layer.weight_h, cell.weight_hh),
            (layer.bias, cell.bias_ih),
        ):
            torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(lstm.head_weight.grad, oracle.head.weight.grad, rtol=1e-11, atol=0)
    torch.testing.assert_close(lstm.head_bias.grad, oracle.head.bias.grad, rtol=1e-11, atol=0)


def test_gradcheck_of_the_fused_step_in_every_argument():
    layer = LSTMLayer(INPUTS, HIDDEN, seeded(1)).double()
    names, weights = zip(*layer.named_parameters(), strict=True)

    def step(x: Tensor, h: Tensor, c: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return functional_call(layer, dict(zip(names, values, strict=True)), (x, h, c))

    shapes = ((INPUTS, 4), (HIDDEN, 4), (HIDDEN, 4))
    inputs = [normal(*shape, seed=50 + i).requires_grad_() for i, shape in enumerate(shapes)]
    assert gradcheck(step, (*inputs, *(w.detach().clone().requires_grad_() for w in weights)))


def test_weights_get_the_same_gradient_when_nothing_else_asks_for_one(lstm, state):
    """The usual case: x and the first state are numbers, only the networks are trained."""
    output, _ = lstm(normal(INPUTS, COLUMNS, seed=3), state)
    output.square().sum().backward()
    oracle = Oracle(lstm)
    expected, _ = oracle(normal(INPUTS, COLUMNS, seed=3), state)
    expected.square().sum().backward()
    for layer, cell in zip(lstm.layers, oracle.cells, strict=True):
        torch.testing.assert_close(layer.weight_x.grad, cell.weight_ih.grad)
        torch.testing.assert_close(layer.weight_h.grad, cell.weight_hh.grad)
        torch.testing.assert_close(layer.bias.grad, cell.bias_ih.grad)


def test_a_step_modifies_neither_its_inputs_nor_the_network(lstm, state):
    x = normal(INPUTS, COLUMNS, seed=4)
    before = [x.clone(), *(t.clone() for t in state)]
    versions = [t._version for t in (x, *state)]
    weights = {name: t.clone() for name, t in lstm.state_dict().items()}
    first, following = lstm(x, state)
    second, again = lstm(x, state)
    first.sum().backward()
    assert [t._version for t in (x, *state)] == versions
    torch.testing.assert_close([x, *state], before, rtol=0, atol=0)
    torch.testing.assert_close(dict(lstm.state_dict()), weights, rtol=0, atol=0)
    torch.testing.assert_close([second, *again], [first, *following], rtol=0, atol=0)
    assert len(following) == len(state)
    assert all(not torch.equal(new, old) for new, old in zip(following, state, strict=True))


def test_backward_can_run_twice_so_it_leaves_what_it_saved_alone(lstm, state):
    inputs = [normal(INPUTS, COLUMNS, seed=5).requires_grad_(), *lstm.parameters()]
    output, following = lstm(inputs[0], state)
    loss = output.square().sum() + following[1].square().sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_columns_are_independent(lstm, state):
    x = normal(INPUTS, COLUMNS, seed=6)
    chosen = [4, 1, 6]
    output, following = lstm(x, state)
    few, few_following = lstm(x[:, chosen], [t[:, chosen] for t in state])
    torch.testing.assert_close(few, output[:, chosen])
    torch.testing.assert_close(few_following, [t[:, chosen] for t in following])


def test_saturated_gates_stay_finite_with_finite_gradients(lstm, state):
    x = (1e4 * normal(INPUTS, COLUMNS, seed=7)).requires_grad_()
    output, following = lstm(x, state)
    gradients = torch.autograd.grad(
        output.sum() + sum(t.sum() for t in following), [x, *lstm.parameters()]
    )
    assert all(tensor.isfinite().all() for tensor in (output, *following, *gradients))


def test_initialisation_depends_on_the_generator_alone():
    global_state = torch.get_rng_state()
    first = LSTM(INPUTS, HIDDEN, LAYERS, OUTPUTS, seeded(8)).state_dict()
    assert torch.equal(torch.get_rng_state(), global_state)
    torch.manual_seed(123)
    second = LSTM(INPUTS, HIDDEN, LAYERS, OUTPUTS, seeded(8)).state_dict()
    torch.set_rng_state(global_state)
    other = LSTM(INPUTS, HIDDEN, LAYERS, OUTPUTS, seeded(9)).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        assert not torch.equal(tensor, other[name])


def test_initialisation_is_uniform_within_one_over_root_hidden():
    bound = 1 / math.sqrt(16)
    for tensor in LSTM(8, 16, 2, 8, seeded(11)).state_dict().values():
        assert tensor.abs().max() <= bound
        if tensor.dim() == 2:
            assert tensor.max() > 0.9 * bound
            assert tensor.min() < -0.9 * bound


def test_state_starts_at_zero_in_the_dtype_of_the_network(lstm):
    state = lstm.init_state(COLUMNS)
    assert [tuple(t.shape) for t in state] == [(HIDDEN, COLUMNS)] * (2 * LAYERS)
    assert all(t.dtype == torch.float64 and not t.any() for t in state)


def test_a_zeroed_head_answers_exactly_zero_and_can_learn(lstm, state):
    lstm.zero_head()
    output, _ = lstm(normal(INPUTS, COLUMNS, seed=12), state)
    assert not output.any()
    output.sum().backward()
    assert lstm.head_weight.grad.any()
