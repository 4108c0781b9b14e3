"""IMDb movie reviews (Maas et al. 2011, ACL): 25,000 train and 25,000 test, two labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftlab.data.published import PublishedDataSet


@dataclass(kw_only=True)
class IMDb(PublishedDataSet):
    """Large Movie Review Dataset v1.0, from the hub, local files or the unpacked aclImdb archive."""

    title: ClassVar[str] = "IMDb"
    label_names: ClassVar[tuple[str, ...]] = ("negative", "positive")
    hub_label_names: ClassVar[tuple[str, ...]] = ("neg", "pos")
    official_rows: ClassVar[dict[str, int]] = {"train": 25_000, "test": 25_000}
    packaged: ClassVar[str] = "imdb_packaged"
    reads_review_tree: ClassVar[bool] = True

    hub_id: str = "stanfordnlp/imdb"
