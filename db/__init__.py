"""What is true: every change of state is a named function in this package."""
