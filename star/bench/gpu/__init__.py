"""What one GPU does: every measurement that this project needs from one, in a single command (``star bench gpu``).

``run`` is the command: it keeps to the time budget and records figures as they arrive. The steps themselves run in a separate
process (``worker``), so that a step that hangs or takes the device down loses only its own figures.
"""
