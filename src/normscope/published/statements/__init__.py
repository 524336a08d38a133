"""One statement per file, each with its STATEMENT; every file here is read."""
