"""Forward passes that ``torch.fx`` can trace, of modules whose own it cannot.

The Transformer modules of torch look at their input to choose a faster way to compute the same, and
what ``torch.compile`` returns runs compiled. The functions here say in plain operations what such
modules compute, without the masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from metaopt.wrappers import is_compiled


def make_plain(model: nn.Module) -> nn.Module:
    """Give the modules of a model forward passes that can be traced, where the table has one.

    Args:
        model: a copy, which is changed.

    Returns:
        The copy.
    """
    for module in list(model.modules()):
        forward = _plain_forward(module)
        if forward is not None:
            kind = type(module)  # a subclass may have parts of its own, which the forward calls
            own = {"forward": forward, "__module__": __name__}  # not torch's, so traced inside
            vars(module).pop("forward", None)
            module.__class__ = type(kind.__name__, (kind,), own)
    return model


def _plain_forward(module: nn.Module) -> Callable[..., Any] | None:
    if is_compiled(module):
        return _compiled
    return next(
        (plain for kind, plain in PLAIN.items() if type(module).forward is kind.forward), None
    )


def _compiled(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self._orig_mod(*args, **kwargs)


def _encoder_layer(self: Any, src: Any, *masks: Any, **others: Any) -> Any:
    if self.norm_first:
        x = src + self._sa_block(self.norm1(src), None, None)
        return x + self._ff_block(self.norm2(x))
    x = self.norm1(src + self._sa_block(src, None, None))
    return self.norm2(x + self._ff_block(x))


def _decoder_layer(self: Any, tgt: Any, memory: Any, *masks: Any, **others: Any) -> Any:
    if self.norm_first:
        x = tgt + self._sa_block(self.norm1(tgt), None, None)
        x = x + self._mha_block(self.norm2(x), memory, None, None)
        return x + self._ff_block(self.norm3(x))
    x = self.norm1(tgt + self._sa_block(tgt, None, None))
    x = self.norm2(x + self._mha_block(x, memory, None, None))
    return self.norm3(x + self._ff_block(x))


def _encoder(self: Any, src: Any, *masks: Any, **others: Any) -> Any:
    for layer in self.layers:
        src = layer(src)
    return src if self.norm is None else self.norm(src)


def _decoder(self: Any, tgt: Any, memory: Any, *masks: Any, **others: Any) -> Any:
    for layer in self.layers:
        tgt = layer(tgt, memory)
    return tgt if self.norm is None else self.norm(tgt)


def _transformer(self: Any, src: Any, tgt: Any, *masks: Any, **others: Any) -> Any:
    return self.decoder(tgt, self.encoder(src))


PLAIN: dict[type[nn.Module], Callable[..., Any]] = {
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.TransformerDecoderLayer: _decoder_layer,
    nn.TransformerEncoder: _encoder,
    nn.TransformerDecoder: _decoder,
    nn.Transformer: _transformer,
}
"""The plain forward pass, by the class whose own it replaces."""
