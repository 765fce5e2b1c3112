"""Metrics, intervals and paired tests: plain functions of arrays."""
