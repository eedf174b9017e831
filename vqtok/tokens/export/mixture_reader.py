"""Read the tokens of an export of rows, from Parquet or JSON lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vqtok.errors import MediaError
from vqtok.tokens.export.layout import to_codes
from vqtok.tokens.export.mixture import Mixture
from vqtok.tokens.export.sequences import OWN_COLUMNS
from vqtok.tokens.export.sidecar import export_facts_of
from vqtok.tokens.export.table_rows import open_table
from vqtok.tokens.shape import Modality
from vqtok.tokens.stored import StoredTokens
from vqtok.tokens.tokens import Tokens

SUFFIX: dict[Modality, str] = {"image": ".png", "audio": ".wav"}


class MixtureExport(StoredTokens):
    """The tokens of an export of rows, each read on access.

    The key of an item is that of its row, with the suffix of its modality if the row has several.

    Raises:
        CorruptFileError: The data are damaged.
        MediaError: They cannot be read, or hold no items, because they are arrays or packed.
        UsageError: Parquet needs pyarrow, which is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._damaged():
            facts = export_facts_of(self.path)
            self.mixture = Mixture.from_facts(facts)
            if facts["to"] not in ("jsonl", "parquet") or "pack" in facts:
                what = "packed sequences" if "pack" in facts else f"{facts['to']} files of rows"
                raise MediaError(f"{self.path}: {what} do not tell where items lie; decode --ids reads their ids")
            self._rows = open_table(self.path, facts["to"], ["key", "segments"])
            self._places: dict[str, tuple[int, int]] = {}
            self._modality: dict[str, Modality] = {}
            for number, row in enumerate(self._rows.index):
                for place, segment in enumerate(row["segments"]):
                    suffix = SUFFIX[segment["modality"]] if len(row["segments"]) > 1 else ""
                    self._places[row["key"] + suffix] = number, place
                    self._modality[row["key"] + suffix] = segment["modality"]

    @property
    def modality(self) -> Modality:
        return self.mixture.modalities[0]

    def modality_of(self, key: str) -> Modality:
        """Return the modality of an item."""
        return self._modality[key]

    def __getitem__(self, key: str) -> Tokens:
        number, place = self._places[key]
        with self._damaged(f"{key}: "):
            row = self._rows[number]
            segment = row["segments"][place]
            ids = np.array(row["input_ids"], np.int64)[segment["start"] :][: segment["length"]]
            modality: Modality = segment["modality"]
            ranges = [one for one in self.mixture.ranges if modality in one.strides]
            found = next((one for one in ranges if ((one.start <= ids) & (ids < one.end)).any()), None)
            if found is None:
                raise ValueError("ids of no model")
            has_rows = "row" in self.mixture.specials and modality == "image"
            specials = {"row": self.mixture.specials["row"]} if has_rows else {}
            columns = {name: value for name, value in row.items() if name not in OWN_COLUMNS and value is not None}
            return Tokens(
                to_codes(ids, tuple(segment["grid"]), self.mixture.layout, found.vocabulary(specials)),
                codebook_sizes=found.codebook_sizes,
                modality=modality,
                size=tuple(segment["size"]),
                stride=found.strides[modality],
                model=found.model,
                metadata=columns,
            )
