"""What is looked at: data sets, their splits, and how an image becomes the input of a network."""
