"""One audit: its configuration, its file, and its results."""
