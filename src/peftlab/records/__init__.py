"""What a run leaves in its folder, and who it is: identity, record, history. Imports no torch."""
