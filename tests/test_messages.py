"""Messages for users: one line, short whatever was given, and with the name that was meant."""

import pickle

import pytest

from metaopt import UserError
from metaopt.checks import (
    check_choice,
    check_names,
    check_not_negative,
    check_positive,
    check_whole,
)
from metaopt.errors import cut, listed, nearest, shown
from metaopt.symmetry import make_action
from metaopt.symmetry.actions import ACTIONS

LONG = "z" * 600


@pytest.mark.parametrize("text", [LONG, "a b\n" * 300, "short"])
def test_a_message_is_one_line_that_keeps_both_ends(text):
    message = str(UserError(f"expected x, got {text}: do that"))
    assert message.startswith("expected x, got ")
    assert message.endswith(": do that")
    assert "\n" not in message
    assert len(message) < 300
    assert (text in message) == (text == "short")
    assert 300 < len(str(UserError(f"expected x, got {LONG}", longest=580))) < 600
    assert str(pickle.loads(pickle.dumps(UserError(message)))) == message


@pytest.mark.parametrize("length", [3, 4, 20, 59, 60, 61, 600])
def test_a_text_is_cut_to_the_length_that_is_asked_for(length):
    text = "".join(chr(97 + n % 26) for n in range(length))
    for longest in (3, 4, 10, 60):
        short = cut(text, longest)
        assert len(short) == min(length, longest)
        head, dots, tail = short.partition("...")
        assert short == text or (text.startswith(head) and dots and text.endswith(tail))


@pytest.mark.parametrize("value", [LONG, [1] * 1000, 10**5000, {"a": LONG}, None], ids=range(5))
def test_what_a_user_gave_is_shown_short(value):
    assert len(shown(value)) <= 60


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("post_activatoin", "post_activation"),
        ("Post-Activation", "post_activation"),
        ("resc", "rescaling"),
        ("rescalign", "rescaling"),
        ("", ""),
        ("qqqq", ""),
        (LONG, ""),
        (3, ""),
        (None, ""),
    ],
)
def test_a_name_that_is_almost_right_is_answered_with_the_right_one(given, meant):
    assert nearest(given, ACTIONS) == meant
    with pytest.raises(UserError) as caught:
        make_action(given)
    message = str(caught.value)
    assert len(message) < 300
    assert (f"did you mean {meant}?" in message) == bool(meant)
    assert "--import" in message


def test_every_check_shortens_what_it_was_given():
    names = [f"name_{n}" for n in range(100)]
    for check in (
        lambda: check_choice("a name", LONG, names),
        lambda: check_names("names", ["name_1", LONG], names),
        lambda: check_names("names", [], names),
        lambda: check_whole("steps", LONG),
        lambda: check_whole("steps", -(10**5000)),
        lambda: check_positive("rate", -(10**5000), 1.0),
        lambda: check_not_negative("rate", -(10**5000)),
    ):
        with pytest.raises(UserError) as caught:
            check()
        assert len(str(caught.value)) < 250
    with pytest.raises(UserError, match="did you mean name_17"):
        check_choice("a name", "nam_17", names)


def test_a_long_list_of_names_is_counted():
    names = [f"name_{n}" for n in range(100)]
    line = listed(names)
    first, more = line.split(" and ")
    assert first.split(", ") == names[: first.count(",") + 1]
    assert more == f"{100 - first.count(',') - 1} more"
    assert listed(names[:3]) == "name_0, name_1, name_2"
    assert len(listed([LONG, "b"])) < 80
