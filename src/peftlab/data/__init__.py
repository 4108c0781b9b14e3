"""Labelled texts: where they come from, how they are split, tokenised and batched."""
