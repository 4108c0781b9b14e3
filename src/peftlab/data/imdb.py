"""IMDb movie reviews (Maas et al. 2011, ACL): 25,000 train and 25,000 test, two labels."""

from __future__ import annotations

from dataclasses import dataclass

from peftlab.data.published import Official, PublishedDataSet

OFFICIAL = Official(
    title="IMDb",
    label_names=("negative", "positive"),
    hub_label_names=("neg", "pos"),
    train_rows=25_000,
    test_rows=25_000,
    packaged="imdb_packaged",
    reads_review_tree=True,
)


@dataclass(kw_only=True)
class IMDb(PublishedDataSet):
    """Large Movie Review Dataset v1.0, from the hub, local files or the unpacked aclImdb archive."""

    hub_id: str = "stanfordnlp/imdb"

    def official(self) -> Official:
        """Both splits of 25,000 reviews."""
        return OFFICIAL
