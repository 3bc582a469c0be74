"""Data sets, splits and pixels; knows nothing of the method."""
