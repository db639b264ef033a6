"""Client training algorithms, one file each."""
