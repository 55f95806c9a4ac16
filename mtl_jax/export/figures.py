"""What an exported file reaches on validation images, shown as the file takes them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from mtl_jax.evaluation import evaluate
from mtl_jax.experiment import View
from mtl_jax.export.formats import Run
from mtl_jax.export.network import OUTPUTS
from mtl_jax.workdir.trained import Trained


def figures(network: Trained, check: Run, view: View) -> dict[str, float]:
    """Returns the main metric of each task, of what a file puts out before decoding.

    Args:
        network: that was exported.
        check: the file, with its outputs.
        view: how images are shown to it.

    Raises:
        UserError: a dataset is not there.
    """
    shown = {"image_size": view.image_size, "crop": view.crop}
    streams = {name: dataclasses.replace(stream, **shown) for name, stream in network.setup.streams.items()}
    setup = dataclasses.replace(network.setup, streams=streams)
    decode = jax.jit(lambda outputs: {name: network.tasks[name].decode(raw) for name, raw in outputs.items()})

    def predict(variables: None, image: np.ndarray, names: tuple[str, ...]) -> Any:
        del variables
        outputs = check(np.asarray(image))
        return decode({name: outputs[f"{name}/{OUTPUTS}"] for name in names})

    measured = evaluate.measured(setup, predict, None, network.names)
    return {name: measured[name].compute()[network.tasks[name].main_metric] for name in network.names}
