"""Sources of given samples."""

import numpy as np


def make_sample(number, *, height=12, width=20, labels=None):
    image = np.random.default_rng(number).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return {"image": image, "labels": {} if labels is None else labels, "id": f"image-{number}"}


def boxes(label, *, crowd=None, boxes_xyxy=None):
    count = len(label)
    result = np.tile(np.array([2.0, 3.0, 10.0, 9.0], np.float32), (count, 1)) if boxes_xyxy is None else boxes_xyxy
    return {
        "boxes_xyxy": np.asarray(result, np.float32).reshape(count, 4),
        "label": np.array(label, np.int32),
        "crowd": np.array([False] * count if crowd is None else crowd, dtype=bool),
        "area": np.full(count, 30.0, np.float32),
    }


class ListSource:
    """A source of given samples that counts how often it is read."""

    def __init__(self, samples, class_names=None):
        self.samples, self.reads = samples, 0
        self.class_names = {"classification": ("cat", "dog")} if class_names is None else class_names

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.reads += 1
        return self.samples[index]


def class_source(label_of_each):
    return ListSource(
        [
            make_sample(number, labels={"classification": {"label": np.array(label, np.int32)}})
            for number, label in enumerate(label_of_each)
        ]
    )
