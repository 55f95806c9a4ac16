"""`mtl-jax benchmark` from a checkout: `python scripts/benchmark.py step --peer torch --json step.json`."""

import sys

from mtl_jax.cli.benchmark import main
from mtl_jax.runtime import allocator

if __name__ == "__main__":
    allocator.tune()
    sys.exit(main(sys.argv[1:]))
