"""`mtl-jax export` from a checkout: `python scripts/export.py --weights runs/seq --out exported`."""

import sys

from mtl_jax.cli.export import main
from mtl_jax.runtime import allocator

if __name__ == "__main__":
    allocator.tune()
    sys.exit(main(sys.argv[1:]))
