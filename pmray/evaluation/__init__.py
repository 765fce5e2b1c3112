"""Models of any kind scored and compared on labelled rows, outside of a run."""
