"""Checkpoint files that are wrong in one way or a few, with and without a right checksum."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import torch
from fuzz_cases import mutated, values
from hypothesis import strategies as st
from safetensors.torch import save

from metaopt.learned.checkpoint import checkpoint_bytes, meta_tensors
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec

SPEC = MetaOptimizerSpec(hidden=2, layers=1)
TENSORS = meta_tensors(MetaOptimizer(SPEC))
FACTS: dict[str, Any] = {"spec": SPEC.as_dict()}
WHOLE = checkpoint_bytes(TENSORS, FACTS)

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1, "I8": 1}
ODD = (
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "F6_E2M3",
    "C64",
    "U64",
    "U16",
    "E8M0",
    "F8_E8M0",
    "X",
    "",
    "f32",
)
DTYPES = (
    torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
    torch.float8_e4m3fn,
)  # fmt: skip
numbers = st.integers(-2, 40) | st.sampled_from((2**31, 2**63 - 1, 2**63, 2**64, 10**30))


def framed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of that header."""
    declared = len(header) if length is None else length
    return struct.pack("<Q", declared) + header + data


def signed(metadata: str, header: str = "{}") -> bytes:
    """No tensors, and facts as text, with the checksum of ``header`` as it is read from them."""
    digest = hashlib.sha256(json.dumps(json.loads(header), sort_keys=True).encode()).hexdigest()
    return save({}, {"metaopt": metadata.replace("DIGEST", digest)})


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A header whose entries say what they like, over a few bytes of data."""
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from((*SIZES, *ODD)),
            "shape": st.lists(numbers, max_size=3),
            "data_offsets": st.lists(numbers, min_size=2, max_size=2),
        }
    )
    plain = st.sampled_from(sorted(SIZES)).map(
        lambda d: {"dtype": d, "shape": [2], "data_offsets": [0, int(2 * SIZES[d])]}
    )
    names = st.sampled_from((*TENSORS, "", "a", "../x", "a\0b", "é", "__class__", "x" * 300))
    entries = draw(st.dictionaries(names, entry | plain | values, max_size=3))
    if draw(st.booleans()):
        right = st.just('{"version": 1, "sha256": "0"}')
        told = st.dictionaries(st.sampled_from(("metaopt", "x")), right | st.text() | values)
        entries["__metadata__"] = draw(told)
    text = json.dumps(entries)
    if draw(st.booleans()):  # the same key twice
        text = text[:-1] + (", " if entries else "") + text[1:]
    data = draw(st.binary(max_size=24))
    length = draw(st.none() | numbers.filter(lambda n: 0 <= n < 2**64))
    return framed(text.encode(), data, length)


hostile_bytes = st.one_of(
    mutated(WHOLE), st.binary(max_size=80), headers(), headers().flatmap(mutated),
    st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=40)).map(
        lambda pair: framed(pair[1], length=pair[0])
    ),
)  # fmt: skip
"""Files that say anything."""

tensors = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(DTYPES),
    st.sampled_from((0.0, 1.0, float("nan"), float("inf"))),
)


@st.composite
def specs(draw: st.DrawFn) -> Any:
    """Of a meta-optimizer, with a field or two that are anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(values)
    fields = st.sampled_from(sorted([*SPEC.as_dict(), "nonsense"]))
    return {**SPEC.as_dict(), **draw(st.dictionaries(fields, values, min_size=1, max_size=2))}


@st.composite
def wrong_tensors(draw: st.DrawFn, right: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Some are others, some are missing, some are too many."""
    some = dict(right)
    for name in draw(st.lists(st.sampled_from(sorted(right)), max_size=2, unique=True)):
        if draw(st.booleans()):
            some[name] = draw(tensors)
        else:
            del some[name]
    return some | draw(st.dictionaries(st.sampled_from(("x", "meta/x", "meta/")), tensors))
