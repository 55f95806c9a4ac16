"""`mtl-jax prepare` from a checkout: `python scripts/prepare_data.py --data_root data`."""

import functools
import sys

from mtl_jax.cli import prepare

main = functools.partial(prepare.main, prefix="prepare_data")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
