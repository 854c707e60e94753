"""Divide the labelled samples of a set into train and test by a published protocol: k-fold, leave-one-out, hold-out.

A fold is a value of the setting `datasets.<set>.protocol`, so that everything fitted in the pipeline is fitted on the
fold's training part. What has no class takes no part in the division: it goes where its person goes, else to train.

- `k_fold`: persons in the ascending order of their names, in groups of consecutive ones that differ by one person at
  most, the first the larger. Source: Ding et al., FaceNet2ExpNet (FG 2017), section IV-C: "divided into ten groups by
  ID in ascending order". With `groups: steps` every tenth person is of one group: others read the sentence so.
- `leave_one_out`: one person. Source: Liu et al., arXiv:2005.08551, section 4 (JAFFE).
- `hold_out`: a share of each class, drawn anew for each fold. Source: Happy et al. 2019, section IV-D (80 % and 20 %,
  ten times). They do not say that persons are kept apart; here they are, unless `by: picture`, so that the share of a
  class is only near to what is asked for. Persons are looked at in a drawn order, again and again, and change sides
  where that brings the test part's counts of the classes nearer to the wanted ones (the sum of squares, each over the
  class's count); for pictures this is stratified drawing.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.folds import HoldOut, KFold, LeaveOneOut
from fer_pipeline.core.seeds import derive

Divided = KFold | LeaveOneOut | HoldOut
PASSES = 20  # over the persons of a hold-out


def is_tested(
    protocol: Divided, subjects: Sequence[str], labels: Int[np.ndarray, " n"], *, fold: int | None = None
) -> Bool[np.ndarray, " n"]:
    """Tell which samples the protocol's fold tests; the others are trained on.

    Args:
        protocol: How the set is divided.
        subjects: The person of each sample, "" where it is not known. A sample without class or name is a person alone.
        labels: Class numbers, below 0 for a sample without a class.
        fold: Another one than the protocol's own.

    Raises:
        DataError: A sample with a class names no person, persons are too few or others than folds, or a part is empty.
    """
    fold = protocol.fold if fold is None else fold
    by_picture = isinstance(protocol, HoldOut) and protocol.by == "picture"
    person = np.arange(len(labels)) if by_picture else number_persons(subjects)
    known = labels >= 0
    persons = np.unique(person[known])
    nameless = [] if by_picture else [one for one in np.flatnonzero(known).tolist() if not subjects[one]]
    if nameless:
        cure = "name the persons by the adapter's options, or draw pictures: {name: hold_out, by: picture}"
        fault = f"{len(nameless)} of {known.sum()} labelled samples do not name their person"
        fault = fault if any(subjects) else "no sample names its person"
        raise DataError(f"{fault}, whom {protocol.name} keeps on one side; {cure}")
    if isinstance(protocol, HoldOut):
        tested = _draw(person, labels, protocol, fold)
    elif isinstance(protocol, LeaveOneOut):
        if len(persons) != protocol.folds:
            raise DataError(f"{len(persons)} persons have a class, but protocol.folds is {protocol.folds}; correct it")
        tested = persons[fold - 1 : fold]
    else:
        if len(persons) < protocol.folds:
            fault = f"{len(persons)} persons have a class, too few for protocol.folds {protocol.folds}"
            raise DataError(f"{fault}; use fewer folds or more data")
        blocks = protocol.groups == "blocks"
        tested = np.array_split(persons, protocol.folds)[fold - 1] if blocks else persons[fold - 1 :: protocol.folds]
    in_test = np.isin(person, tested)
    if not (in_test & known).any() or not (~in_test & known).any():
        part = "nothing to train on" if (in_test & known).any() else "nothing to test"
        raise DataError(f"fold {fold} of the protocol {protocol.name} has {part}; use another share or more data")
    return in_test


def number_persons(subjects: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Number persons in the ascending order of their names, numbers in them as numbers; nameless samples come last."""
    names = sorted({*filter(None, subjects)}, key=lambda name: (_natural(name), name))
    number = {name: index for index, name in enumerate(names)}
    return np.asarray(
        [number[name] if name else len(names) + index for index, name in enumerate(subjects)], dtype=np.int64
    )


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    numbers = ((part.lstrip("0") if part.isdigit() and part.isascii() else None, part) for part in parts)
    return [
        (1, 0, part) if digits is None else (0, len(digits), digits) for digits, part in numbers
    ]  # longer is larger


def _draw(
    person: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], protocol: HoldOut, fold: int
) -> Int[np.ndarray, " p"]:
    known = labels >= 0
    persons, index = np.unique(person[known], return_inverse=True)
    counts = np.zeros((len(persons), int(labels.max(initial=0)) + 1))
    np.add.at(counts, (index, labels[known]), 1)
    missing, weights = protocol.test * counts.sum(0), 1 / np.maximum(counts.sum(0), 1)
    generator = np.random.default_rng(derive(protocol.seed, "hold_out", fold))
    order, tested = generator.permutation(len(persons)), np.zeros(len(persons), bool)
    for _ in range(PASSES):
        before = tested.copy()
        for one in order:
            left = missing + counts[one] if tested[one] else missing - counts[one]
            if np.square(left) @ weights < np.square(missing) @ weights:
                missing, tested[one] = left, not tested[one]
        if (tested == before).all():
            break
    return persons[tested]
