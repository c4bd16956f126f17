"""Text rendering: engines that read, and the reward for the lines they read."""
