"""From prompts to trajectories and back."""
