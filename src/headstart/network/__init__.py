"""What is trained: models, where they are cut, and the states that they begin and end with."""
