"""peftlab: a laboratory for parameter-efficient fine-tuning.

Importing this package imports nothing heavy; each module says what it needs.
"""

__version__ = "0.1.0"
