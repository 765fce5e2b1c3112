"""``python -m pmray``."""

from pmray.cli import main

main()
