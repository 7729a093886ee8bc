"""Where the time and the memory of the model go on this machine (`hsta-fast profile`)."""
