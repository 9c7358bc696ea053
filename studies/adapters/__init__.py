"""Low-rank adapters, balanced along their symmetry at each step, against AdamW as it is.

``python -m studies.adapters`` trains a character model on the pages of this repository, tunes it
with adapters to the source of the library, and compares final losses on text that was held out: by
the scale at which the adapters begin, by rank, and at each method's own best rate.
``python -m studies.adapters.documents`` does so with MiniLM on a classification, and
``python -m studies.adapters.rotations`` balances heads in training, at rates above the best.
"""
