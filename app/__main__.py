"""The entry point of `slimserve` and of `python -m app`."""

from app.cli.root import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
