"""Lets `python -m backend` do what the installed `backend` command does."""

from backend.cli import main

if __name__ == "__main__":
    main()
