"""AG News (Zhang, Zhao and LeCun 2015, arXiv:1509.01626): 120,000 train and 7,600 test, four topics."""

from __future__ import annotations

from dataclasses import dataclass

from peftlab.data.published import Official, PublishedDataSet

TOPICS = ("World", "Sports", "Business", "Sci/Tech")
OFFICIAL = Official(
    title="AG News",
    label_names=TOPICS,
    hub_label_names=TOPICS,
    train_rows=120_000,
    test_rows=7_600,
    packaged="bbc_news",
    train_stems=("train", "train_subset"),
)


@dataclass(kw_only=True)
class AGNews(PublishedDataSet):
    """AG's news topics, version 3; text is title and description."""

    hub_id: str = "fancyzhx/ag_news"

    def official(self) -> Official:
        """120,000 training and 7,600 test texts."""
        return OFFICIAL
