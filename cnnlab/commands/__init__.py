"""One module a command: it reads a run, calls the right room, and says what came out."""
