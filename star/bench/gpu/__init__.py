"""What one GPU does: every measurement that this project needs from one, in a single command (``star bench gpu``).

``run`` is the command: it keeps to the time budget, prints figures as they arrive and writes them down step by step. The steps
themselves run in a separate process (``worker``), so that one that hangs or takes the device down costs no other step's.
"""
