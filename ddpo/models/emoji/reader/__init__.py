"""The emoji world's reader of looks."""
