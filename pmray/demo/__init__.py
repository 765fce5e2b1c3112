"""The whole story on real sentences that pmray carries with it."""
