"""What ``import peftlab`` offers to Python: adapters in any model, and runs of the command line's kind."""
