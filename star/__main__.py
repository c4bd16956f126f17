"""``python -m star``, for where the command ``star`` is not on the path."""

from star.cli import main

if __name__ == "__main__":
    main()
