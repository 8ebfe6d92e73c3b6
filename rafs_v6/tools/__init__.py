"""What is done with images that exist: check, compare, take apart, rewrite.  Prints nothing."""
