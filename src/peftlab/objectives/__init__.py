"""What a run learns to say of a text, a file an objective."""
