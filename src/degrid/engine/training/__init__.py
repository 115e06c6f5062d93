"""Training: the loop, its losses, optimisers, schedules and records."""
