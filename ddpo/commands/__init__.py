"""What the commands of `ddpo` do: one file, one command."""
