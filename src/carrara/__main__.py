"""`python -m carrara`: the command line, where its script is not on the path."""

from carrara.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
