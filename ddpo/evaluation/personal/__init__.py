"""Pictures to users' tastes, judged by these users."""
