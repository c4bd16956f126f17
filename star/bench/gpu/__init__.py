"""What one GPU does: every measurement that this project wants of one, in one command (``star bench gpu``).

``run`` is the command: it keeps the budget and writes down what arrives. The steps themselves compute in a process of their
own (``worker``), so that one that hangs or takes the device down costs its own figures alone.
"""
