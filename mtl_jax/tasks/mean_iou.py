"""Mean intersection over union of masks, at the original images' resolution."""

from __future__ import annotations

import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.tasks import dense
from mtl_jax.tasks.base import Constant, Geometry, Labels, Prediction, share_error

BACKGROUND = "background"  # the class that is none of the others


class MeanIoU:
    """Mean intersection over union, from one confusion matrix of all pixels at the masks' original size.

    Classes that occur neither in a target nor in a prediction are left out of the mean. Void pixels count
    nowhere. Without any labelled pixel every figure is NaN. Where only some classes are labelled, predictions of the
    others are neither right nor wrong on what is labelled "background", which they may be, and misses elsewhere.
    """

    def __init__(self, *, name: str, classes: tuple[str, ...], ignore_label: int) -> None:
        self._name, self._classes, self._ignore_label = name, classes, ignore_label
        self.confusion = np.zeros((len(classes), len(classes)), np.int64)  # [target, prediction]
        self._missed = np.zeros(len(classes), np.int64)  # pixels that were given to an unlabelled class
        self._images = 0  # with a labelled pixel

    def update(self, prediction: Prediction, target: Labels, geometry: Geometry) -> None:
        """Adds one image.

        Raises:
            UserError: the mask has another size than the image, or a value outside the table of classes.
        """
        truth = np.asarray(target["mask"]).astype(np.int64)
        dense.check_size(self._name, "mask", truth, geometry)
        labelled = truth != self._ignore_label
        count = len(self._classes)
        unknown_values = np.unique(truth[labelled & ((truth < 0) | (truth >= count))])
        if unknown_values.size:
            raise UserError(
                f"task {self._name!r}: expected mask values below {count} or {self._ignore_label} (void), "
                f"found {unknown_values[-1]}; list every class in the config, or set the task's ignore_label"
            )
        predicted = dense.at_original(np.asarray(prediction["mask"]), geometry).astype(np.int64)
        self._images += bool(labelled.any())
        if "labelled" in target:
            labelled_classes = np.asarray(target["labelled"])
            labelled &= labelled_classes[np.where(labelled, truth, 0)]
            elsewhere = labelled & ~labelled_classes[predicted]
            labelled &= ~elsewhere
            missed = np.bincount(truth[elsewhere], minlength=count)
            self._missed += np.where([name == BACKGROUND for name in self._classes], 0, missed)
        pairs = truth[labelled] * count + predicted[labelled]
        self.confusion += np.bincount(pairs, minlength=count**2).reshape(count, count)

    def compute(self) -> dict[str, float]:
        """Returns "miou", "pixel_accuracy" and "iou/<class>" (NaN for a class that never occurs)."""
        hits = np.diag(self.confusion).astype(float)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) + self._missed - hits
        total = self.confusion.sum() + self._missed.sum()
        iou = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
        figures = {
            "miou": float(iou[union > 0].mean()) if total else float("nan"),
            "pixel_accuracy": float(hits.sum() / total) if total else float("nan"),
        }
        return figures | {f"iou/{name}": float(value) for name, value in zip(self._classes, iou, strict=True)}

    def constant(self) -> Constant:
        """Returns what the most frequent class reaches, mostly the background: its share, by the classes."""
        pixels = self.confusion.sum(axis=1) + self._missed
        figure = float(pixels.max() / pixels.sum() / np.count_nonzero(pixels)) if pixels.any() else float("nan")
        return Constant(figure, share_error(figure, self._images), self._images, "image with a labelled pixel")
