"""`mtl-jax compare` from a checkout: `python scripts/compare.py --out runs/ablation configs/ablation_seq.py`."""

import sys

from mtl_jax.cli.compare import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
