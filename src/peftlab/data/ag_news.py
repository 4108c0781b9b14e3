"""AG News (Zhang, Zhao and LeCun 2015, arXiv:1509.01626): 120,000 train and 7,600 test, four topics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftlab.data.published import PublishedDataSet


@dataclass(kw_only=True)
class AGNews(PublishedDataSet):
    """AG's news topics, version 3; text is title and description."""

    title: ClassVar[str] = "AG News"
    label_names: ClassVar[tuple[str, ...]] = ("World", "Sports", "Business", "Sci/Tech")
    hub_label_names: ClassVar[tuple[str, ...]] = ("World", "Sports", "Business", "Sci/Tech")
    official_rows: ClassVar[dict[str, int]] = {"train": 120_000, "test": 7_600}
    packaged: ClassVar[str] = "bbc_news"
    train_stems: ClassVar[tuple[str, ...]] = ("train", "train_subset")

    hub_id: str = "fancyzhx/ag_news"
