"""Frames, optical flow and apexes: decoded once, kept in a cache."""
