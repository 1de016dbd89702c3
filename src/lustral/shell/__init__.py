"""The only rooms that touch disk, clock, environment and terminal."""
