"""A site that a user declares by the names of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from metaopt.errors import UserError, shown
from metaopt.symmetry.activations import Identity
from metaopt.symmetry.finders.network import features_last
from metaopt.symmetry.finders.projection import Projection
from metaopt.symmetry.site import Site

DECLARED = "declared"


@dataclass(frozen=True)
class Pair:
    """A site that a user declares by the names of its weights.

    Attributes:
        incoming: the weight that makes the features, by name, or several.
        outgoing: the weight that uses them, or several.
        heads: how many heads the features have, with a group element each.
        group: "GL", or "positive" or "nonzero" for scales.
        name: for people.

    Example:
        >>> Pair("encode.weight", "decode.weight").group
        'GL'
    """

    incoming: str | tuple[str, ...]
    outgoing: str | tuple[str, ...]
    heads: int = 1
    group: str = "GL"
    name: str = ""

    def site(self, model: nn.Module) -> Site:
        """Return the site in a model. Biases beside the incoming weights move along.

        Args:
            model: the model.

        Raises:
            UserError: for a name that is no parameter, and for sizes that do not fit.
        """
        if self.group not in ("GL", "positive", "nonzero"):
            raise UserError(
                f"expected a group of GL, positive, nonzero, got {shown(self.group)}: name one"
            )
        made, used = (
            (side,) if isinstance(side, str) else tuple(side)
            for side in (self.incoming, self.outgoing)
        )
        parameters = dict(model.named_parameters())
        into = [self._side(model, parameters, name, True) for name in made]
        out_of = [self._side(model, parameters, name, False) for name in used]
        widths = {view.width for view in (*into, *out_of)}
        if len(widths) != 1:
            raise UserError(
                f"expected one number of features on both sides of a site, got {sorted(widths)} of "
                f"{', '.join((*made, *used))}: name weights that meet"
            )
        other = [_other(parameters, view) for view in (*into, *out_of)]
        linear = self.group == "GL"
        return Site(
            name=self.name or f"{', '.join(made)} -> {', '.join(used)}",
            incoming=tuple(v.rows(size) for v, size in zip(into, other, strict=False)),
            outgoing=tuple(
                v.columns(size)[0] for v, size in zip(out_of, other[len(into) :], strict=True)
            ),
            between=Identity() if linear else None,
            group=self.group,
            width=widths.pop(),
            layers=(made[0].removesuffix(".weight"), used[0].removesuffix(".weight")),
            plain=linear,
            homogeneous=True,
            kind=DECLARED,
        )

    def _side(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], name: str, makes: bool
    ) -> Projection:
        weight = parameters.get(name)
        if weight is None or weight.dim() != 2:
            raise UserError(
                f"expected the name of a matrix of the model, got {shown(name)}: name one of "
                f"named_parameters()"
            )
        holder = model.get_submodule(name.rpartition(".")[0])
        turned = type(holder).__name__ == "Conv1D" and features_last(holder)
        last = turned if makes else not turned
        size = int(weight.shape[1 if last else 0])
        if size % self.heads:
            raise UserError(
                f"expected {size} features of {name} in {self.heads} heads, got a rest of "
                f"{size % self.heads}: give another number of heads"
            )
        bias = f"{name.removesuffix('weight')}bias" if name.endswith("weight") else ""
        own = bias if makes and bias in parameters else None
        return Projection(name, name, own, last, (self.heads, size // self.heads), 0, 1)


def _other(parameters: dict[str, nn.Parameter], view: Projection) -> int:
    return int(parameters[view.weight].shape[0 if view.features_last else 1])
