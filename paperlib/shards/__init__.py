"""Text of any size: a folder of files becomes a vocabulary and memory-mapped parts of tokens."""
