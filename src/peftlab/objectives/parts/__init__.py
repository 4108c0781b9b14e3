"""What several objectives, or a large one, are made of. ``split``, ``blocks`` and ``mixed`` import torch."""
