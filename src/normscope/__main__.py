"""`python -m normscope` is the command `normscope`."""

from normscope.cli import main

main()
