"""The loop, its updates and what losses are functions of."""
