"""Archives (.tar without compression, .zip) that are read in place: their members, an index of them, their contents."""
