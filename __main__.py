"""``python -m olivine`` is ``olivine``."""

from .cli import main

if __name__ == "__main__":
    main()
