"""`python -m hsta_fast` is `hsta-fast`."""

from .cli import main

main()
