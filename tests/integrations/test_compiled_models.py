"""Both optimizers with ``torch.compile``, before and after the optimizer is built."""

import pytest
import torch
from integration_cases import (
    TELEPORTS,
    assert_equal,
    assert_moved,
    every_optimizer,
    loader,
    network,
    plain_loop,
    teleporting,
)

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile asks for it
BACKENDS = pytest.mark.parametrize("backend", ["eager", "aot_eager"])
ORDERS = {"before": lambda model, compiled: compiled, "after": lambda model, compiled: model}


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@BACKENDS
@pytest.mark.parametrize("given", ORDERS.values(), ids=ORDERS)
@every_optimizer
def test_a_compiled_model_is_trained_as_the_model_it_wraps(backend, given, build):
    model, plain = network(), network()
    compiled = torch.compile(model, backend=backend)
    optimizer, other = build(given(model, compiled)), build(plain)
    plain_loop(compiled, optimizer, loader())
    plain_loop(plain, other, loader())
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-6)
    assert_moved(model, network())
    if build is teleporting:
        assert optimizer.made == len(TELEPORTS)
    else:
        assert optimizer.report() == other.report()


@every_optimizer
def test_a_model_compiled_in_place_is_trained_as_before(build):
    model, plain = network(), network()
    optimizer = build(model)
    model.compile(backend="eager")
    plain_loop(model, optimizer, loader())
    plain_loop(plain, build(plain), loader())
    assert_equal(model, plain)
