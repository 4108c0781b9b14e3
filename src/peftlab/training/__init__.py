"""Training: the one LightningModule, its optimizer, metrics, callbacks and checkpoints."""
