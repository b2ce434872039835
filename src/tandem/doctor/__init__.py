"""What may keep a service from starting on this machine, looked at without starting or changing anything."""
