"""`python -m tessella`: the command line."""

from .cli import main

main()
