"""`python -m tessella`: the command line."""

from .cli.main import main

main()
