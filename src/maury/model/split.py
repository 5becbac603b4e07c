"""Training, validation and test stars: a split that never divides a star.

The record of a split holds a checksum of each part and, of every star, a short hash of its
identifier, its position and its photometry, so that a model knows its own stars again, in other
surveys as well.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, model_validator

from maury.errors import ConfigError, LengthMismatch, check_known
from maury.io.arrays import BoolArray, Int64Array, StrArray
from maury.spectra.star_identity import KnownStars, StarMarks, plain_identifiers

logger = logging.getLogger(__name__)

ValidationUse = Literal["choice", "calibration"]
PARTS = ("train", "validation", "test")
PUBLISHED_WARNING = (
    "the published split has no independent test: its test rows steer early stopping and the "
    "choice of networks, and it divides rows, not stars"
)
HELD_OUT_FOLDS = "shares"
"""Entry of `Model.training`: the training stars are in so many folds (`held_out_fold`), of which
each member holds out one. Absent where all members train on all stars."""
_HASH_DIGITS = 16
"""Of SHA-256: 64 bits, so that two of 1e6 stars share a hash with a probability of 3e-8."""


class SplitConfig(BaseModel):
    """How rows are divided.

    Attributes
    ----------
    rule : {"star", "published"}
        ``star``: whole stars, at random. ``published``: the rows of Guiglion et al. (2020), whose
        test rows are also the validation rows.
    train, validation, test : float
        Fractions of the stars (rule ``star``); their sum is 1.
    folds, fold : int
        With more than one fold, the test stars are the `fold`-th (from 0) of `folds` equal parts
        of all stars, for cross-validation; `train` and `validation` then divide the others in
        proportion, and `test` does not count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Literal["star", "published"] = "star"
    train: float = Field(default=0.82, gt=0.0, lt=1.0)
    validation: float = Field(default=0.08, gt=0.0, lt=1.0)
    test: float = Field(default=0.10, gt=0.0, lt=1.0)
    folds: int = Field(default=1, ge=1, le=1000)
    fold: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train + validation + test must be 1, got {total:g}")
        if self.fold >= self.folds:
            raise ValueError(f"fold must be below folds, got {self.fold} of {self.folds}")
        if self.folds > 1 and self.rule != "star":
            raise ValueError("folds need the rule 'star'")
        return self


@dataclass(frozen=True)
class Split:
    """Row numbers of each part.

    Attributes
    ----------
    rule : str
        ``star`` or ``published``.
    train, validation, test : (n_part,) int64
        Row numbers; in the order that the rule gives.
    n_shared_stars : int
        Stars of the test rows that also have training or validation rows; 0 for the rule ``star``.
    """

    rule: str
    train: Int64Array
    validation: Int64Array
    test: Int64Array
    n_shared_stars: int = 0

    def part(self, name: str) -> Int64Array:
        """Row numbers of ``train``, ``validation`` or ``test``."""
        rows: Int64Array = getattr(self, check_known("part", name, PARTS))
        return rows


def split_rows(star_id: ArrayLike, *, config: SplitConfig, seed: int) -> Split:
    """Divide rows by the rule of `config`.

    Parameters
    ----------
    star_id : (n_row,) str
        Star of each row; equal for all spectra of one star.
    config : SplitConfig
        Rule and fractions.
    seed : int
        Seed of the rule ``star``; the published rule has its own (42).

    Raises
    ------
    ConfigError
        If there are too few stars for three parts.
    """
    if config.rule == "published":
        return split_published(star_id)
    if config.folds > 1:
        share = config.validation / (config.train + config.validation)
        return split_folds(
            star_id, folds=config.folds, fold=config.fold, validation=share, seed=seed
        )
    fractions = (config.train, config.validation, config.test)
    return split_stars(star_id, fractions=fractions, seed=seed)


def split_stars(star_id: ArrayLike, *, fractions: tuple[float, float, float], seed: int) -> Split:
    """Divide whole stars at random; the result does not depend on the order of the rows.

    Parameters
    ----------
    star_id : (n_row,) str
        Star of each row. A row without one (an empty string) counts as a star of its own.
    fractions : (float, float, float)
        Training, validation and test fractions of the stars. Each part gets at least one star.
    seed : int
        Seed of the permutation of the sorted identifiers.

    Raises
    ------
    ConfigError
        If there are fewer than three stars.
    """
    star, n_star = _star_numbers(star_id)
    if n_star < 3:
        raise ConfigError(
            f"a split into training, validation and test stars needs at least 3 stars, got {n_star}"
        )
    # Rounding may leave a part of few stars without any; each gets one.
    n_test = min(max(1, round(fractions[2] * n_star)), n_star - 2)
    n_validation = min(max(1, round(fractions[1] * n_star)), n_star - n_test - 1)
    part = np.zeros(n_star, dtype=np.int8)
    shuffled = np.random.default_rng(seed).permutation(n_star)
    part[shuffled[:n_test]] = 2
    part[shuffled[n_test : n_test + n_validation]] = 1
    rows = [np.flatnonzero(part[star] == code) for code in range(3)]
    return Split("star", rows[0], rows[1], rows[2])


def split_folds(
    star_id: ArrayLike, *, folds: int, fold: int, validation: float, seed: int
) -> Split:
    """Divide whole stars for cross-validation: every star is a test star of exactly one fold.

    Parameters
    ----------
    star_id : (n_row,) str
        As of `split_stars`.
    folds : int
        Parts of nearly equal numbers of stars.
    fold : int
        Which of them is the test part.
    validation : float
        Share of validation stars among the others; at least one star.
    seed : int
        Of the permutation, which is that of `split_stars`.

    Raises
    ------
    ConfigError
        If there are fewer stars than folds, or fewer than four.
    """
    star, n_star = _star_numbers(star_id)
    if n_star < max(4, folds):
        raise ConfigError(f"{folds} folds need at least {max(4, folds)} stars, got {n_star}")
    shuffled = np.random.default_rng(seed).permutation(n_star)
    edges = np.linspace(0, n_star, folds + 1).round().astype(np.int64)
    rest = np.concatenate([shuffled[: edges[fold]], shuffled[edges[fold + 1] :]])
    # Each fold has validation stars of its own, next to its test stars.
    rest = np.roll(rest, -int(edges[fold]))
    n_validation = min(max(1, round(validation * rest.size)), rest.size - 1)
    part = np.zeros(n_star, dtype=np.int8)
    part[shuffled[edges[fold] : edges[fold + 1]]] = 2
    part[rest[:n_validation]] = 1
    rows = [np.flatnonzero(part[star] == code) for code in range(3)]
    return Split("star", rows[0], rows[1], rows[2])


def split_published(star_id: ArrayLike) -> Split:
    """Divide rows as Guiglion et al. (2020) did: 94 % training rows, 6 % test rows.

    The rows are permuted by the legacy generator of numpy with seed 42; the first ceil(0.06 n) are
    the test rows, which are the validation rows as well, and the others are the training rows, in
    the permuted order. A warning is logged, for this split flatters the result.

    Raises
    ------
    ConfigError
        If there are fewer than two rows.
    """
    star, _ = _star_numbers(star_id)
    if star.size < 2:
        raise ConfigError(f"the published split needs at least 2 rows, got {star.size}")
    # Numpy keeps this old generator as it was, so that the rows are those of the publication.
    order = np.random.RandomState(42).permutation(star.size).astype(np.int64)
    n_test = ceil(0.06 * star.size)
    test, train = order[:n_test], order[n_test:]
    shared = np.intersect1d(star[train], star[test])
    logger.warning("%s; %d stars stand on both sides here", PUBLISHED_WARNING, shared.size)
    return Split("published", train, test, test, int(shared.size))


def kept_rows(split: Split, left_out: BoolArray, dropped: dict[str, int]) -> BoolArray:
    """Return which rows (n_row,) stay of those that somebody wants left out of training.

    Test rows stay: a list that was made with a model must not choose what tests the next one.

    Parameters
    ----------
    split : Split
    left_out : (n_row,) bool
    dropped : dict of str to int
        Rows that were left out, by reason; takes the number of these.
    """
    tested = np.zeros(left_out.size, dtype=np.bool_)
    tested[split.test] = split.rule != "published"
    if n_left_out := int((left_out & ~tested).sum()):
        dropped["left out by name"] = n_left_out
    return np.asarray(~left_out | tested, dtype=np.bool_)


def star_hashes(star_id: ArrayLike) -> StrArray:
    """Short hash of each identifier, shape (n_row,): 16 hexadecimal digits of its SHA-256."""
    ids = np.asarray(star_id).astype(np.str_)
    digests = [hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS] for text in ids.tolist()]
    return np.array(digests, dtype=f"<U{_HASH_DIGITS}")


def star_numbers(star_id: ArrayLike) -> Int64Array:
    """Return a number of each star, shape (n_row,), from its hash; 0 without an identifier."""
    ids = np.asarray(star_id).astype(np.str_)
    numbers = np.array([int(text, 16) for text in star_hashes(ids).tolist()], dtype=np.uint64)
    return np.where(ids == "", 0, numbers.view(np.int64))


def held_out_fold(star_id: ArrayLike, *, n_fold: int, seed: int) -> Int64Array:
    """Fold of each star, (n_row,) from 0 to `n_fold` - 1: member m of an ensemble holds out fold m.

    Out-of-fold residuals are as honest as those of validation stars (cross-fitting;
    Chernozhukov et al. 2018, EJ 21, C1). All spectra of a star are in one fold,
    which depends on nothing but its identifier and the seed.

    Parameters
    ----------
    star_id : (n_row,) str
    n_fold, seed : int
    """
    # With the seed in the text, folds of two seeds have nothing to do with each other.
    salted = [f"{seed}:{text}" for text in np.asarray(star_id).astype(np.str_).tolist()]
    numbers = [int(text, 16) % n_fold for text in star_hashes(salted).tolist()]
    return np.array(numbers, dtype=np.int64)


@dataclass(frozen=True)
class SplitRecord:
    """What a model remembers of the split that made it.

    Attributes
    ----------
    rule : str
        ``star``, ``published`` or ``unknown`` (imported networks).
    n_rows : mapping of str to int
        Rows of each part.
    checksums : mapping of str to str
        SHA-256 of the sorted star hashes of each part.
    hashes : mapping of str to (n_star,) array of str
        Sorted star hashes of each part, 16 hexadecimal digits each.
    warning : str
        Why the test part is not independent; empty if it is.
    validation_use : {"choice", "calibration"}
        What the validation stars are for: early stopping and the choice of networks, or nothing
        but the calibration of errors after training.
    marks : mapping of str to StarMarks
        Positions and photometry of the stars of each part, by which they are known in surveys that
        name them otherwise; empty in models of older versions.
    identified : mapping of str to int
        How many spectra had their star identified by an identifier, by position, by photometry, or
        by nothing but the identifier of the spectrum; empty where that is not known.
    """

    rule: str
    n_rows: Mapping[str, int]
    checksums: Mapping[str, str]
    hashes: Mapping[str, StrArray]
    warning: str = ""
    validation_use: ValidationUse = "choice"
    marks: Mapping[str, StarMarks] = field(default_factory=dict)
    identified: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        split: Split,
        stars: StarMarks | ArrayLike,
        *,
        usable: BoolArray | None = None,
        validation_use: ValidationUse = "choice",
    ) -> Self:
        """Record a split.

        Parameters
        ----------
        split : Split
            The split.
        stars : StarMarks, or (n_row,) array_like of str
            Star of each row: all that it is known by, or its identifier alone.
        usable : (n_row,) bool, optional
            Rows that were used; the others are not counted.
        validation_use : {"choice", "calibration"}
            As the attribute.
        """
        marks = _marks(stars)
        ids = plain_identifiers(marks.star_id)
        kept = np.ones(ids.size, dtype=np.bool_) if usable is None else usable
        rows = {name: split.part(name)[kept[split.part(name)]] for name in PARTS}
        hashes = {name: np.unique(star_hashes(_named(ids[rows[name]]))) for name in PARTS}
        used = marks.take(np.unique(np.concatenate(list(rows.values()))))
        # Whoever gives each visit its own star_id would test on stars that trained.
        trained = KnownStars(marks.take(rows["train"]))
        shared = (
            0 if split.rule == "published" else int(trained.among(marks.take(rows["test"])).sum())
        )
        warning = ""
        if split.rule == "published":
            warning = f"{PUBLISHED_WARNING}; {split.n_shared_stars} stars stand on both sides here"
        elif shared:
            # Identifiers decide, but they may be those of visits, or of an older way to find stars.
            warning = (
                f"{shared} test spectra have the position or the photometry of training stars, but "
                "another star_id, so that the test may not be independent; correct star_id, or "
                "ingest the spectra again without it"
            )
            logger.warning("%s", warning)
        return cls(
            split.rule,
            MappingProxyType({name: int(rows[name].size) for name in PARTS}),
            MappingProxyType({name: _checksum(hashes[name]) for name in PARTS}),
            MappingProxyType(hashes),
            warning,
            validation_use,
            MappingProxyType({name: marks.take(rows[name]) for name in PARTS}),
            MappingProxyType({how: n for how, n in used.counts().items() if n}),
        )

    @classmethod
    def unknown(cls, warning: str) -> Self:
        """Record of networks whose stars are not known."""
        none = np.array([], dtype=f"<U{_HASH_DIGITS}")
        return cls(
            "unknown",
            MappingProxyType(dict.fromkeys(PARTS, 0)),
            MappingProxyType(dict.fromkeys(PARTS, _checksum(none))),
            MappingProxyType(dict.fromkeys(PARTS, none)),
            warning,
        )

    @cached_property
    def _known(self) -> dict[str, KnownStars]:
        return {name: KnownStars(marks) for name, marks in self.marks.items()}

    def contains(self, part: str, stars: StarMarks | ArrayLike) -> BoolArray:
        """Whether each star, shape (n_row,), belongs to ``train``, ``validation`` or ``test``.

        Parameters
        ----------
        part : str
        stars : StarMarks, or (n_row,) array_like of str
            Of the survey that the model was trained on, identifiers alone tell. Stars of another
            survey are known by position and photometry as well, if the model is not of an older
            version. A row of which nothing is known belongs to no part.
        """
        check_known("part", part, PARTS)
        marks = _marks(stars)
        forms, plain = [marks.star_id], plain_identifiers(marks.star_id)
        if not np.array_equal(plain, marks.star_id):
            # Models of older versions hold hashes of identifiers as they were written.
            forms.append(plain)
        found = np.zeros(len(marks), dtype=np.bool_)
        for ids in forms:
            found |= np.isin(star_hashes(ids), self.hashes[part]) & (ids != "")
        if part in self._known:
            found |= self._known[part].among(marks)
        return found

    def took_part(self, stars: StarMarks | ArrayLike) -> BoolArray:
        """Whether each star, shape (n_row,), trained the networks or helped to choose them."""
        trained = self.contains("train", stars)
        if self.validation_use == "calibration":
            return trained
        return trained | self.contains("validation", stars)

    def is_known(self, stars: StarMarks | ArrayLike) -> BoolArray:
        """Whether each star, shape (n_row,), took part, or is kept to calibrate errors."""
        return self.contains("train", stars) | self.contains("validation", stars)

    def to_json(self) -> dict[str, Any]:
        """Plain mapping for `model.json`; the hashes of a part are one string."""
        return {
            "rule": self.rule,
            "n_rows": dict(self.n_rows),
            "sha256": dict(self.checksums),
            "star_hashes": {name: "".join(self.hashes[name].tolist()) for name in PARTS},
            "warning": self.warning,
            "validation_use": self.validation_use,
            "stars": {name: marks.to_json() for name, marks in self.marks.items()},
            "identified": dict(self.identified),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave.

        Raises
        ------
        ValueError, KeyError, TypeError
            If the mapping is not such a record, or a checksum does not agree.
        """
        hashes = {name: _unpack(data["star_hashes"][name]) for name in PARTS}
        checksums = {name: _checksum(hashes[name]) for name in PARTS}
        if checksums != {name: data["sha256"][name] for name in PARTS}:
            raise ValueError("the checksums of the split do not agree with its star hashes")
        return cls(
            str(data["rule"]),
            MappingProxyType({name: int(data["n_rows"][name]) for name in PARTS}),
            MappingProxyType(checksums),
            MappingProxyType(hashes),
            str(data["warning"]),
            _validation_use(data.get("validation_use", "choice")),
            MappingProxyType(
                {name: StarMarks.from_json(marks) for name, marks in data.get("stars", {}).items()}
            ),
            MappingProxyType({str(how): int(n) for how, n in data.get("identified", {}).items()}),
        )


def with_known_parts(split: Split, records: Iterable[SplitRecord], stars: StarMarks) -> Split:
    """Return a split in which stars that earlier models know keep the part that they had there.

    Parameters
    ----------
    split : Split
    records : iterable of SplitRecord
        Of the earlier models. What trained any of them tests nothing.
    stars : StarMarks
        Of the rows of the split.
    """
    code = np.zeros(len(stars), dtype=np.int64)
    for k, name in enumerate(PARTS):
        code[split.part(name)] = k
    known = list(records)
    # The last wins where the parts of earlier models overlap: training stars come last.
    for k in reversed(range(len(PARTS))):
        for record in known:
            code[stars.whole(record.contains(PARTS[k], stars))] = k
    return split_by_code(split, code)


def split_by_code(split: Split, code: Int64Array) -> Split:
    """Return a split by the number of each row's part (n_row,), -1 for none."""
    train, validation, test = (np.flatnonzero(code == k) for k in range(len(PARTS)))
    return replace(split, train=train, validation=validation, test=test)


def _marks(stars: StarMarks | ArrayLike) -> StarMarks:
    return stars if isinstance(stars, StarMarks) else StarMarks.named(stars)


def _star_numbers(star_id: ArrayLike) -> tuple[Int64Array, int]:
    ids = np.asarray(star_id).astype(np.str_)
    if ids.ndim != 1:
        raise LengthMismatch(f"star_id must be one row of identifiers, got shape {ids.shape}")
    # Sorted: the split depends on which stars there are, not on the order of their rows.
    named, number = np.unique(ids, return_inverse=True)
    number = number.astype(np.int64).reshape(-1)
    blank = np.flatnonzero(ids == "")
    if blank.size == 0:
        return number, int(named.size)
    # The empty string sorts first: its rows are renumbered after the named stars, one each.
    number = number - 1
    number[blank] = named.size - 1 + np.arange(blank.size)
    return number, int(named.size - 1 + blank.size)


def _named(ids: StrArray) -> StrArray:
    named: StrArray = ids[ids != ""]
    return named


def _checksum(hashes: StrArray) -> str:
    return hashlib.sha256("".join(hashes.tolist()).encode()).hexdigest()


def _validation_use(value: object) -> ValidationUse:
    for use in get_args(ValidationUse):
        if value == use:
            return use  # type: ignore[no-any-return]
    raise ValueError(f"validation_use is {value!r}")


def _unpack(text: object) -> StrArray:
    if not isinstance(text, str) or len(text) % _HASH_DIGITS:
        raise ValueError("star hashes are not strings of 16 digits each")
    starts = range(0, len(text), _HASH_DIGITS)
    return np.array([text[k : k + _HASH_DIGITS] for k in starts], dtype=f"<U{_HASH_DIGITS}")
