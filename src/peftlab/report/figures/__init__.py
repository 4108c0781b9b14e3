"""Pictures: of a report, of a run's training, of its weight updates."""
