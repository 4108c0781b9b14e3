"""What several objectives, or a large one, are made of. ``split`` and ``blocks`` import torch."""
