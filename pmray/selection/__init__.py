"""Decisions as plain functions: who is worth trying, what to try next, who goes on, who wins."""
