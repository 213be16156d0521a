"""Graph passes, one a file. `pipeline` lists them in order and is the page to read first."""
