"""Kinds of problem: their columns, encoding, model head, predictions and metrics."""
