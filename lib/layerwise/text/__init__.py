"""Text by name and split, from the embedded world, the Hub or local files, as windows of tokens `[n, length]`."""
