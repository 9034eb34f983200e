"""`python -m emabench` is `emabench`."""

from emabench.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
