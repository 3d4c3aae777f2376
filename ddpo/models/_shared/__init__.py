"""What the families of models have in common."""
