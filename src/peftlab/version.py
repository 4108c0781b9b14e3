"""The version of peftlab, in one place."""

__version__ = "0.1.0"
