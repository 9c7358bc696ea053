"""Evaluate methods on held-out problems: python eval_meta.py --methods lstm_update_tele,gd."""

import sys

from metaopt.cli.start import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
