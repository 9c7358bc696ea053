"""Meta-train a learned optimizer: python train_meta.py --config configs/lstm_update_tele.yaml."""

import sys

from metaopt.cli.start import train

if __name__ == "__main__":
    sys.exit(train())
