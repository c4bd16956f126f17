"""What all other packages build on: errors, files, progress, processes, keyed noise, statistics."""
