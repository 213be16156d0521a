"""TVMScript templates, one file an operator family."""
