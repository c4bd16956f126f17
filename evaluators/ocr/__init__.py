"""Text rendering: engines that read, and what their lines are worth."""
