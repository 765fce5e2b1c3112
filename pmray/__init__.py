"""pmray picks the right pre-trained model for a job and proves the choice."""
