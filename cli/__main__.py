"""``python -m cli``: the same as ``moorage``."""

from cli.main import main

main()
