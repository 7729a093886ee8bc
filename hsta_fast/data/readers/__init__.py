"""One file for each data set: which columns and folders its versions have, and what is peculiar to them."""
