"""Whether a record is true: against its own figures, its files, its data, its model, and against a run made again."""
