"""One run: from a config to a record, and from a record back to a model."""
