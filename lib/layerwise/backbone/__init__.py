"""Where the parts of any decoder-only model are, which device it works on, and passes over its blocks."""
