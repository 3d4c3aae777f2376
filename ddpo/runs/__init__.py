"""The life of a run: from its configuration to its folder, and what is made of it later."""
