"""A local page: drop a video, see where it moves and what the model makes of it. Needs `hsta_fast[serve]`."""
