"""Commands that show or hand on what is there, and sample nothing."""
