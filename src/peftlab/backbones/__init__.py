"""Models that map token ids to class scores, and what surgery needs to know of them."""
