"""Divide labelled samples into train and test: hold-out, k-fold by subject, leave-one-subject-out.

Every protocol is a pure generator of `(train, test)` index arrays, both ascending. No subject is ever on both sides;
a sample without a subject ("") counts as a person of its own. Sources: CK+ by 10 folds of subjects (Liu et al.,
arXiv:2005.08551, section 4); JAFFE by leave-one-subject-out there, for models trained on JAFFE only. No stage uses
them yet: they wait for the learners that are measured on CK+, JAFFE and Oulu-CASIA.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.seeds import derive

Fold = tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]


def hold_out(subjects: Sequence[str], *, share: float, seed: int) -> Iterator[Fold]:
    """Yield one fold: about `share` of the subjects (at least one, never all) are the test set."""
    if not 0 < share < 1:
        raise ConfigError(f"a hold-out share must lie between 0 and 1, found {share}")
    group, count = _number_subjects(subjects, least=2)
    order = np.random.default_rng(derive(seed, "hold_out")).permutation(count)
    yield from _folds(group, [order[: min(count - 1, max(1, round(share * count)))]])


def k_fold(subjects: Sequence[str], *, folds: int, seed: int) -> Iterator[Fold]:
    """Yield `folds` folds by subject; each subject is tested exactly once, fold sizes differ by at most one subject."""
    if folds < 2:
        raise ConfigError(f"k-fold needs at least 2 folds, found {folds}")
    group, count = _number_subjects(subjects, least=folds)
    order = np.random.default_rng(derive(seed, "k_fold")).permutation(count)
    yield from _folds(group, np.array_split(order, folds))


def leave_one_subject_out(subjects: Sequence[str]) -> Iterator[Fold]:
    """Yield one fold a subject, in order of first appearance."""
    group, count = _number_subjects(subjects, least=2)
    yield from _folds(group, range(count))


def _number_subjects(subjects: Sequence[str], *, least: int) -> tuple[Int[np.ndarray, " n"], int]:
    """Number the subjects by first appearance, and count them."""
    names = [subject or f"\0{index}" for index, subject in enumerate(subjects)]
    encoded = pa.array(names, pa.string()).dictionary_encode()
    if (count := len(encoded.dictionary)) < least:
        raise DataError(f"the protocol needs at least {least} subjects, found {count}; use fewer folds or more data")
    return encoded.indices.to_numpy(), count


def _folds(group: Int[np.ndarray, " n"], tests: Iterable[Any]) -> Iterator[Fold]:
    for test in tests:
        is_test = np.isin(group, test)
        yield np.flatnonzero(~is_test), np.flatnonzero(is_test)
