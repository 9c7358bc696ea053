"""Coverage-guided fuzzing of the readers of checkpoints and of IDX files, by atheris.

    pip install atheris
    python scripts/fuzz_atheris.py -max_total_time=120
    python scripts/fuzz_atheris.py CORPUS_FOLDER -max_total_time=3600

The flags are libFuzzer's. Any exception but a UserError is a finding; libFuzzer writes the bytes
that raised it into the current folder. The first byte of an input says which reader gets the rest.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["metaopt.tasks.data", "metaopt.learned.checkpoint_files"]):
    from metaopt.learned.checkpoint import checkpoint_bytes, load_meta_optimizer, meta_tensors
    from metaopt.tasks.data.idx import read_idx

from metaopt.errors import UserError
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec

FILE = Path(tempfile.mkdtemp()) / "input.safetensors"


def seeds() -> list[bytes]:
    """A good file for each reader."""
    spec = MetaOptimizerSpec(hidden=1, layers=1, heads=("plain",), features=("balance",))
    tensors = meta_tensors(MetaOptimizer(spec))
    images = struct.pack(">4I", 0x0803, 2, 2, 3) + bytes(12)
    return [b"\0" + checkpoint_bytes(tensors, {"spec": spec.as_dict()}), b"\1" + images]


def read(content: bytes) -> None:
    """One input: a complaint is as good as a result."""
    FILE.write_bytes(content[1:])
    try:
        if content[:1] < b"\1":
            load_meta_optimizer(FILE)
        else:
            read_idx(FILE, (2, 3), most=5)
    except UserError:
        return


def main() -> None:
    """Hand over to libFuzzer, with the good files as its corpus if none is given."""
    arguments = sys.argv
    if all(argument.startswith("-") for argument in arguments[1:]):
        corpus = FILE.parent / "corpus"
        corpus.mkdir()
        for index, content in enumerate(seeds()):
            (corpus / str(index)).write_bytes(content)
        arguments = [*arguments, str(corpus), "-max_len=4096"]
    atheris.Setup(arguments, read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
