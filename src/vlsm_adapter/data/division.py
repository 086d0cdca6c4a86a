"""How one run divides its cases, where it does not take the data's own splits as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

from vlsm_adapter.data.folds import fold_splits, parse_fold
from vlsm_adapter.data.split_files import read_split_file
from vlsm_adapter.data.splits import complete_splits, warn_of_divided_groups
from vlsm_adapter.data.strata import foreground_shares
from vlsm_adapter.data.subsets import few_shot, parse_subset, subset_name
from vlsm_adapter.errors import ConfigError, nearest
from vlsm_adapter.types import Record

STRATIFY = ("size", "none")


def check_stratify(name: str) -> bool:
    """Whether to stratify: True for ``"size"``, False for ``"none"``.

    Raises:
        ConfigError: another name.
    """
    if name not in STRATIFY:
        raise ConfigError(f"stratify '{name}': {nearest(name, STRATIFY)}")
    return name == "size"


@dataclass(frozen=True)
class Division:
    """The keys of the configuration that say which case is in which split.

    Attributes:
        seed: of splits and folds, and of subsets without a seed of their own.
        fractions: parts of train, val and test where the data says no split.
        split_file: takes the place of the data's own splits, see ``split_files``.
        fold: ``"2/5"`` takes their place too, see ``folds.fold_splits``.
        subset: ``"5%"`` or a number of training cases, see ``subsets``.
        subset_seed: of the subset alone.
        stratify: ``"size"`` makes folds and subsets alike in foreground size, ``"none"`` reads no mask for them.

    Raises:
        ConfigError: a value is not of its form, both ``split_file`` and ``fold`` are given, or ``subset_seed`` alone.
    """

    seed: int = 0
    fractions: Sequence[float] = (0.7, 0.1, 0.2)
    split_file: str | None = None
    fold: str | None = None
    _: KW_ONLY
    subset: str | int | None = None
    subset_seed: int | None = None
    stratify: str = "size"

    def __post_init__(self) -> None:
        check_stratify(self.stratify)
        if self.fold is not None:
            parse_fold(self.fold)
            if self.split_file is not None:
                raise ConfigError(f"fold '{self.fold}' and split file '{self.split_file}': give one of them")
        if self.subset is not None:
            parse_subset(self.subset)
        elif self.subset_seed is not None:
            raise ConfigError(
                f"subset_seed {self.subset_seed}: there is no subset; give one, such as subset=10%, or leave it out"
            )

    def __str__(self) -> str:
        """In words, for cards and reports; empty where the data's own splits are taken whole."""
        parts = []
        if self.split_file is not None:
            parts.append(f"splits of {Path(self.split_file).name}")
        if self.fold is not None:
            number, folds = parse_fold(self.fold)
            parts.append(f"fold {number} of {folds}")
        if self.subset is not None:
            parts.append(subset_name(self.subset))
        if self.subset_seed is not None:
            parts.append(f"subset seed {self.subset_seed}")
        if self.fold is not None or self.subset is not None:
            parts.append(f"split seed {self.seed}")
            parts += ["not stratified"] if self.stratify == "none" else []
        return ", ".join(parts)

    def of(self, split: str | None) -> Division:
        """The same for the use of one split: a subset of train matters only for ``"train"``, ``"all"`` and None."""
        return self if split in (None, "train", "all") else replace(self, subset=None, subset_seed=None)

    def split(self, records: Sequence[Record], where: str) -> list[Record]:
        """Give every case its split: by the split file, the fold, the data itself or the fractions.

        Raises:
            DataError, ConfigError: as ``SplitFile.apply``, ``fold_splits``, ``complete_splits``.
        """
        if self.split_file is not None:
            made = read_split_file(self.split_file).apply(records, where)
            warn_of_divided_groups(made, f"{where}, split by {self.split_file}")
            return made
        if self.fold is None:
            return complete_splits(records, fractions=self.fractions, seed=self.seed, where=where)
        number, folds = parse_fold(self.fold)
        shares = foreground_shares(records) if check_stratify(self.stratify) else None
        return fold_splits(records, number, folds, fractions=self.fractions, seed=self.seed, shares=shares)

    def shrink(self, records: Sequence[Record]) -> list[Record]:
        """Of the training cases the subset; all others.

        Raises:
            ConfigError: the subset is larger than the training cases are many.
        """
        if self.subset is None:
            return list(records)
        train = [record for record in records if record.split == "train"]
        shares = foreground_shares(train) if check_stratify(self.stratify) else None
        seed = self.seed if self.subset_seed is None else self.subset_seed
        return few_shot(records, self.subset, seed=seed, shares=shares)
