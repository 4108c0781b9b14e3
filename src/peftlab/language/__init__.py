"""What is asked of a language model: how likely an answer is, and what it writes. Knows nothing of data or runs."""
