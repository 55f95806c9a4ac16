"""`mtl-jax eval` from a checkout: `python eval.py --weights runs/seq --tasks all --data_root data --json out.json`."""

import sys

from mtl_jax.cli.eval import main
from mtl_jax.runtime import allocator

if __name__ == "__main__":
    allocator.tune()
    sys.exit(main(sys.argv[1:]))
