"""Rows in, answers out: over HTTP on Ray Serve, or in this process."""
