"""`python -m namm.cli`."""

from namm.cli import main

main()
