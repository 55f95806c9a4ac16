"""`mtl-jax train` from a checkout: `python scripts/train.py --config configs/seq.py --workdir runs/seq`."""

import sys

from mtl_jax.cli.train import main
from mtl_jax.runtime import allocator

if __name__ == "__main__":
    allocator.tune()
    sys.exit(main(sys.argv[1:]))
