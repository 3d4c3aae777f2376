"""The emoji world's reader of preferences."""
