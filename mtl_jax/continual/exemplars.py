"""Selection of exemplars: the few samples of a stream that represent it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from itertools import zip_longest

import numpy as np
from jaxtyping import Float, Int

from mtl_jax.data.label_shapes import shape_of
from mtl_jax.data.sources.base import Sample


def random(total: int, count: int, *, generator: np.random.Generator) -> Int[np.ndarray, "chosen"]:
    """Chooses uniformly, without repetition.

    Args:
        total: number of samples to choose from.
        count: how many to choose; all if there are fewer.
        generator: source of randomness.

    Returns:
        Their indices.
    """
    return generator.permutation(total)[:count]


def reservoir(stream: Iterable[int], count: int, *, generator: np.random.Generator) -> Int[np.ndarray, "chosen"]:
    """Chooses uniformly from a stream of unknown length in one pass.

    Args:
        stream: indices of samples, as they pass by.
        count: how many to choose; all if there are fewer.
        generator: source of randomness.

    Returns:
        The chosen indices.

    References:
        Vitter, "Random sampling with a reservoir", 1985 (algorithm R).
    """
    selected: list[int] = []
    for position, index in enumerate(stream):
        if position < count:
            selected.append(index)
        elif (slot := int(generator.integers(position + 1))) < count:
            selected[slot] = index
    return np.array(selected, dtype=np.int64)


def class_balanced(
    classes: Sequence[Set[int]], count: int, *, generator: np.random.Generator
) -> Int[np.ndarray, "chosen"]:
    """Chooses greedily so that as many classes as possible are shown, then as evenly as possible.

    Each choice shows the most classes that were shown least so far; ties are broken at random. The greedy
    cover shows at least 1 - 1/e of the classes that the best choice of the same size shows.

    Args:
        classes: the classes that each sample shows, from `sample_classes`.
        count: how many to choose; all if there are fewer.
        generator: source of randomness.

    Returns:
        Their indices in the order of choice: any beginning is the greedy choice of its own size.

    References:
        Nemhauser, Wolsey, Fisher, "An analysis of approximations for maximizing submodular set functions",
        1978.
    """
    columns = {class_id: column for column, class_id in enumerate(sorted(set().union(*classes)))}
    order = generator.permutation(len(classes))
    shows = np.zeros((len(classes), len(columns)))
    for row, index in enumerate(order):
        shows[row, [columns[class_id] for class_id in classes[index]]] = 1.0
    class_counts = np.zeros(len(columns))
    is_left = np.ones(len(classes), dtype=bool)
    selected: list[int] = []
    for _ in range(min(count, len(classes))):
        # A class shown once less is worth more than all classes shown oftener together. Counting from the
        # least shown class that is still to be had keeps the powers within floating-point range.
        available = shows[is_left].any(axis=0)
        least = class_counts[available].min() if available.any() else 0.0
        value = (len(columns) + 1.0) ** (least - np.maximum(class_counts, least))
        row = int(np.argmax(np.where(is_left, shows @ value, -1.0)))
        is_left[row] = False
        class_counts += shows[row]
        selected.append(int(order[row]))
    return np.array(selected, dtype=np.int64)


def herding(
    features: Float[np.ndarray, "samples channels"], count: int, *, groups: Sequence[int] | None = None
) -> Int[np.ndarray, "chosen"]:
    """Chooses greedily so that the mean feature of the chosen samples stays near that of all.

    Args:
        features: of each sample; their lengths are set to 1 first.
        count: how many to choose; all if there are fewer.
        groups: of each sample, such as its class; the groups take turns, and each is herded to its own mean.

    Returns:
        Their indices in the order of choice.

    References:
        Welling, "Herding dynamical weights to learn", 2009. Rebuffi et al., "iCaRL: Incremental Classifier and
        Representation Learning", 2017, algorithm 4.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    group_of = np.zeros(len(features), np.int64) if groups is None else np.asarray(groups)
    members = [np.flatnonzero(group_of == group) for group in np.unique(group_of)]
    queues = [_herded(unit[of], of, count) for of in members]
    turns = [index for turn in zip_longest(*queues) for index in turn if index is not None]
    return np.array(turns[:count], dtype=np.int64)


def _herded(unit: Float[np.ndarray, "members channels"], indices: np.ndarray, count: int) -> list[int]:
    mean, total, is_left = unit.mean(axis=0), np.zeros(unit.shape[1]), np.ones(len(unit), dtype=bool)
    selected: list[int] = []
    for number in range(min(count, len(unit))):
        distance = np.linalg.norm(mean - (total + unit) / (number + 1), axis=1)
        pick = int(np.argmin(np.where(is_left, distance, np.inf)))
        is_left[pick] = False
        total += unit[pick]
        selected.append(int(indices[pick]))
    return selected


def diverse(features: Float[np.ndarray, "samples channels"], count: int) -> Int[np.ndarray, "chosen"]:
    """Chooses greedily the sample farthest from all chosen so far, beginning with the one nearest to the mean.

    Args:
        features: of each sample.
        count: how many to choose; all if there are fewer.

    Returns:
        Their indices in the order of choice. No sample is farther from the chosen ones than twice what the best
        choice of the same size, begun freely, could reach.

    References:
        Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985. Sener, Savarese, "Active Learning
        for Convolutional Neural Networks: A Core-Set Approach", 2018.
    """
    selected: list[int] = []
    nearest = np.full(len(features), np.inf)
    pick = int(np.argmin(np.linalg.norm(features - features.mean(axis=0), axis=1)))
    for _ in range(min(count, len(features))):
        selected.append(pick)
        nearest = np.minimum(nearest, np.linalg.norm(features - features[pick], axis=1))
        nearest[selected] = -1.0  # even of equal samples, none is chosen twice
        pick = int(np.argmax(nearest))
    return np.array(selected, dtype=np.int64)


def hard(losses: Float[np.ndarray, "samples"], count: int) -> Int[np.ndarray, "chosen"]:
    """Chooses the samples of the largest loss, the largest first.

    Args:
        losses: of each sample.
        count: how many to choose; all if there are fewer.
    """
    return np.argsort(-np.asarray(losses), kind="stable")[:count].astype(np.int64)


def sample_classes(sample: Sample, label_name: str | None = None) -> set[int]:
    """The classes that a sample shows, whatever the kind of its labels.

    Args:
        sample: with a mask, boxes, a single class or several. Void pixels, crowds and missing labels show nothing,
            nor do numbers and depths.
        label_name: which of its labels to look at; without it, all, whose class numbers are then united.

    Returns:
        Class numbers.
    """
    labels = sample["labels"].items()
    class_sets = [shape_of(fields).classes_shown(fields) for name, fields in labels if label_name in (None, name)]
    return set().union(*class_sets)
