"""Several processes that are one computation."""
