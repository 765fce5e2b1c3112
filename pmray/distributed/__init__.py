"""Ray shells: they connect, schedule and carry out what the pure rooms decide, and hold no decision of their own."""
