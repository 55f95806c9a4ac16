"""`python -m mtl_jax` is the program `mtl-jax`."""

from mtl_jax.cli import program

if __name__ == "__main__":
    program()
