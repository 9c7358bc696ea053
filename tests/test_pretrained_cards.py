"""What is said of the shipped optimizers."""

import pytest

import metaopt


@pytest.mark.parametrize("name", metaopt.list_pretrained())
def test_every_shipped_optimizer_has_a_card(name):
    card = metaopt.pretrained_card(name)
    assert card.startswith(f"# {name}\n")
    assert all(f"**{part}" in card for part in ("Trained on", "Results", "Limits"))


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(metaopt.UserError, match="lstm_update_tele"):
        metaopt.pretrained_card("sgd")
