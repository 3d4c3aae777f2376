"""The embedded world: scenes of sprites, the models trained on them, and how these were made."""
