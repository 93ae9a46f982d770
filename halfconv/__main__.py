"""``python -m halfconv``."""

from halfconv.cli import main

if __name__ == "__main__":
    main()
