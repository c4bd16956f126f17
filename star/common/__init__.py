"""What everything stands on: errors, files, progress, processes, keyed noise, statistics."""
