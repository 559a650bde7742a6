"""Commands of `fbmem`, one file each."""
