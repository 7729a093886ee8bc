"""One file for each dataset: which columns and folders its versions have, and what is peculiar to them."""
