"""Renames or removes classes of a finished run, in a work directory of its own; no weight changes.

mtl-jax edit --from runs/mine --workdir runs/mine-2 --task det --rename tvmonitor=screen --remove sofa
"""

from __future__ import annotations

from collections.abc import Sequence

from mtl_jax.cli import flags
from mtl_jax.errors import UserError


def parser() -> flags.Parser:
    """Returns the command's flags."""
    usage = "mtl-jax edit --from DIR --workdir DIR --task NAME [--rename OLD=NEW …] [--remove NAME …]"
    parser = flags.Parser("edit", __doc__, usage=usage)
    parser.add_argument("--from", dest="parent", required=True, metavar="DIR", help="the finished run's work directory")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="output folder of the new version")
    parser.add_argument("--task", required=True, metavar="NAME", help="task of the classes")
    several = {"nargs": "+", "action": "extend", "default": []}
    parser.add_argument("--rename", **several, metavar="OLD=NEW", help="rename classes")
    parser.add_argument("--remove", **several, metavar="NAME", help="remove classes from the predictions")
    return parser


@flags.reported
def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0, or 2 for a usage error."""
    options = parser().parse_args(arguments)
    pairs = [rename_text.partition("=") for rename_text in options.rename]
    if malformed := next(
        (rename_text for rename_text, (old, _, new) in zip(options.rename, pairs, strict=True) if not old or not new),
        "",
    ):
        raise UserError(f"--rename: expected the name of today, =, and the new one, found {malformed}")
    # Imported after the flags, so that a usage error does not wait for JAX.
    from absl import logging
    from rich.console import Console

    from mtl_jax.evaluation import contract_table
    from mtl_jax.extend import edit

    logging.set_verbosity(logging.ERROR)  # silences Orbax
    rename = {old: new for old, _, new in pairs}
    command = " ".join(("mtl-jax edit", *arguments))
    contract = edit(
        options.parent, options.workdir, options.task, rename=rename, remove=options.remove, command=command
    )
    Console().print(contract_table.table(contract))
    print(f"report: {options.workdir}/report.html")
    return 0
