"""``python -m vlsm_adapter`` is ``vlsm``."""

from vlsm_adapter.cli import main

if __name__ == "__main__":
    main()
